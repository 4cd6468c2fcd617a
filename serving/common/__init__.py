"""What the other rooms and the other packages use too: commands, files, pictures, the format of an artifact."""
