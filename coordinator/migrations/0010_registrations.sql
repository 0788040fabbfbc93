-- What operators have said of devices. The version comes from the counter of the groups' versions, which never goes back.
CREATE TABLE registrations (
    device TEXT PRIMARY KEY, hardware_id TEXT NOT NULL UNIQUE, enabled BIGINT NOT NULL, version BIGINT NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX registrations_disabled ON registrations (device) WHERE enabled = 0;
-- Devices that operators have removed. One that a node tells of again is held until an operator registers or enables it.
CREATE TABLE removed_devices (device TEXT PRIMARY KEY, at BIGINT NOT NULL);
-- What a device last said of itself. Nothing is decided by it.
CREATE TABLE self_reports (device TEXT PRIMARY KEY, record TEXT NOT NULL);
