-- What operators keep here that nobody signs: firmware drafts and marks, baselines, drafts of campaigns. The version comes
-- from the counter of the groups' versions, which never goes back.
CREATE TABLE records (
    kind TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, record TEXT NOT NULL, PRIMARY KEY (kind, id)
) STRICT;
-- One draft for each version of a component of a model.
CREATE TABLE firmware_versions (
    vendor TEXT NOT NULL, model TEXT NOT NULL, component TEXT NOT NULL, firmware_version TEXT NOT NULL,
    name TEXT NOT NULL, PRIMARY KEY (vendor, model, component, firmware_version)
) STRICT;
-- Long work. The id begins with the time, so that their order is that of their begins.
CREATE TABLE operations (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
