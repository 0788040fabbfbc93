-- API keys: of their secrets only digests stand in the records. `revoked` is 0 or 1, and never goes back.
CREATE TABLE api_keys (id TEXT PRIMARY KEY, revoked INTEGER NOT NULL, record TEXT NOT NULL);
