-- What was said to devices in their last attempts: the record says of which, and the words lie sealed with the device's own key, as
-- they may name what identifies it.
CREATE TABLE transcripts (
    device TEXT NOT NULL, number INTEGER NOT NULL, record TEXT NOT NULL, words BLOB, PRIMARY KEY (device, number)
) STRICT;
-- Which profile a device has its credentials from, by its name, and which node says so.
CREATE TABLE credential_profiles (
    device TEXT NOT NULL, node TEXT NOT NULL, profile TEXT NOT NULL, PRIMARY KEY (device, node)
) STRICT;
CREATE INDEX credential_profiles_by_node ON credential_profiles (node);
