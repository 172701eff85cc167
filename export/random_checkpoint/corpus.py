"""The text that random checkpoints' tokenizers are trained on, written for that purpose."""

TEXT = """
Good morning. How can I help you today? Please set a timer for ten minutes, then remind me to take the bread out of
the oven. The timer is running; I will tell you when it is done. What is the weather going to be like tomorrow? It
will be cloudy in the morning with a little rain, and sunny in the afternoon. You should take an umbrella with you.
Turn on the lights in the kitchen and turn off the radio in the living room. The lights are on now. Is there anything
else you would like me to do? Add milk, eggs, butter and two apples to the shopping list. I have added four things to
your list. Could you play some quiet music? Of course. Here is something slow for the evening.

The sky is blue because the air scatters short waves of light more than long ones. When the sun goes down, its light
has to travel through more air, so only the red and orange part reaches us. A lighthouse stood at the end of a long
stone wall. Every night the keeper walked up the stairs, lit the lamp, and watched the ships come home. One winter the
fog was so thick that nobody could see the light, so he rang the great bell until morning, and all of the ships came
home safely. The children asked him if he had been afraid. He laughed and said that he was only afraid of the stairs.

A computer on your desk can listen and speak without asking anyone far away. Sound is cut into short frames, each of
them becomes a row of numbers, and a network turns the rows into words and into speech again. What you say stays in
the room. If the answer comes late, people stop talking to a machine; so every part of it has to be quick: first the
question is read while it is still being spoken, then the answer begins before it has been thought to its end.

Numbers are said one after the other: one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve,
twenty, thirty, fifty, a hundred, a thousand. It's half past three. They're here, we've seen them, I'd go, you'll stay,
she doesn't know, he isn't sure, that's all. Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday are the
days of the week. January, February, March, April, May, June, July, August, September, October, November, December.
Which train should I take from the station to the harbour? The fast train leaves at quarter to nine and arrives before
ten; the slow one stops everywhere. Tell me about your family: my mother, my father, two sisters and a brother who lives
in another country. I am happy to hear that. I am sorry, I did not understand; would you say it again, please?

Red, green, yellow, white, black and brown. North, south, east and west. Bread and cheese, soup with potatoes, rice and
beans, coffee or tea with sugar, a glass of cold water. Where is my telephone? It is under the chair beside the window.
Open the door, close the window, bring the book back to the library, write a letter, read the next chapter, count the
birds in the garden, wait for the bus, cross the river by the old bridge. The doctor will see you at eleven o'clock.
Yesterday was long; today is better; nobody knows about tomorrow. Thank you very much. You are welcome. Goodbye!

You are asked to generate both text and speech tokens at the same time. You are asked to generate text tokens.
system user assistant tool role content name arguments type function description parameters properties required string
{"name": "get_weather", "arguments": {"city": "London", "unit": "celsius"}} {"temperature": 21, "rain": false}
{"type": "function", "function": {"name": "set_timer", "parameters": {"type": "object", "properties": {"minutes": 5}}}}
# Tools: You may call one or more functions to assist with the user query. For each function call, return a JSON object.

早上好。今天天气怎么样?明天早上多云,下午晴天。请把厨房的灯打开,然后播放一些安静的音乐。好的,灯已经打开了。
你叫什么名字?我是一个可以听也可以说的助手。请再说一遍,我没有听清楚。现在是三点半。谢谢你,再见。不客气,明天见。
声音被切成很短的小段,每一段变成一行数字,然后网络把数字变成文字和声音。你说的话不会离开这个房间。
从前有一座灯塔,守塔的人每天晚上都点亮灯,看着船一艘一艘地回家。有一年冬天,雾很大,谁也看不见灯光,他就敲钟敲到天亮。
一二三四五六七八九十,百千万。春天,夏天,秋天,冬天。爸爸妈妈,哥哥姐姐,弟弟妹妹。我们一起去公园散步吧!
"""
