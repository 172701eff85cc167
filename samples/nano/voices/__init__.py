"""What drsr-nano hears and says, as sound: the reply's voice, the users', rooms and noises, rendered into shards."""
