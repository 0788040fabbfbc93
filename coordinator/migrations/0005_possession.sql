-- Which nodes have proven that they hold which image of a campaign, and how often a proof did not hold.
CREATE TABLE possession (
    campaign TEXT NOT NULL, node TEXT NOT NULL, artifact TEXT NOT NULL, record TEXT NOT NULL,
    PRIMARY KEY (campaign, node, artifact)
) STRICT;
