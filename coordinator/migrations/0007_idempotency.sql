-- Answers to requests that came with an Idempotency-Key, kept until they expire. Without a body: it was not kept.
CREATE TABLE idempotency (
    scope TEXT NOT NULL, key TEXT NOT NULL, request_sha256 TEXT NOT NULL, status INTEGER NOT NULL,
    content_type TEXT, body BLOB, expires INTEGER NOT NULL, PRIMARY KEY (scope, key)
) STRICT;
CREATE INDEX idempotency_expires ON idempotency (expires);
