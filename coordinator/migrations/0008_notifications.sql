-- What people are told of, in order. A row is written in the transaction of the change that it tells of; numbers are never given
-- twice, and `id` is the message's name at every destination, over retries and replays.
CREATE TABLE notices (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, id TEXT NOT NULL, notice TEXT NOT NULL
) STRICT;
CREATE INDEX notices_by_time ON notices (at);
-- How far each destination has been told.
CREATE TABLE notified (destination TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
