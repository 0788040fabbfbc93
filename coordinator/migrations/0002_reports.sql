-- A node that lost its journal counts its reports from the start: what it signed before stays beside what it signs now.
CREATE TABLE reports_signed (
    node TEXT NOT NULL, sequence INTEGER NOT NULL, envelope TEXT NOT NULL, PRIMARY KEY (node, sequence, envelope)
) STRICT, WITHOUT ROWID;
INSERT INTO reports_signed SELECT node, sequence, envelope FROM reports;
DROP TABLE reports;
ALTER TABLE reports_signed RENAME TO reports;
