"""All that is kept in Redis speaks to it through here."""
