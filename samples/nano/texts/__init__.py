"""What drsr-nano hears and says, as text: a grammar of dialogues, its checker, the tokenizer, the 5 Hz grid."""
