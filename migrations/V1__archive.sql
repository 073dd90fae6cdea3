-- The archive: audit blocks as they were written, and one row for each dispatch and each end of one.
--
-- Rows are narrow, appended only, and partitioned by UTC day. The archiver makes the partitions; there is no default
-- partition, since one would have to be searched before another could be attached. Closed lists (kinds, decisions, outcomes, reasons,
-- priorities) are small numbers; the table `word` says what they mean.

CREATE TABLE word (
    list text NOT NULL,
    code smallint NOT NULL,
    name text NOT NULL,
    PRIMARY KEY (list, code)
);
COMMENT ON TABLE word IS 'The names of the numbers in the closed lists; written by the archiver at each start.';

CREATE TABLE audit_block (
    shard smallint NOT NULL,
    epoch bigint NOT NULL,
    sequence bigint NOT NULL,
    at timestamptz NOT NULL,
    records integer NOT NULL,
    prev_hash bytea NOT NULL,
    hash bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (shard, at, epoch, sequence)
) PARTITION BY RANGE (at);
COMMENT ON TABLE audit_block IS 'Audit blocks byte for byte: the proof behind the rows. hash is BLAKE3 of data; data holds prev_hash.';
-- Bodies are packed already.
ALTER TABLE audit_block ALTER COLUMN data SET STORAGE EXTERNAL;

CREATE TABLE dispatch_decision (
    instance bigint NOT NULL,
    sequence bigint NOT NULL,
    accepted timestamptz NOT NULL,
    decided timestamptz NOT NULL,
    deadline timestamptz NOT NULL,
    root_instance bigint,
    root_sequence bigint,
    parent_instance bigint,
    parent_sequence bigint,
    epoch bigint NOT NULL,
    block bigint NOT NULL,
    slot integer NOT NULL,
    copy integer NOT NULL,
    root_slot integer,
    root_copy integer,
    parent_slot integer,
    parent_copy integer,
    policy_version integer NOT NULL,
    shard smallint NOT NULL,
    kind smallint NOT NULL,
    lane smallint NOT NULL,
    class smallint NOT NULL,
    decision smallint NOT NULL,
    reason smallint NOT NULL,
    outcome smallint,
    source text NOT NULL,
    target text,
    capability text,
    conversation text,
    payload_hash bytea NOT NULL
) PARTITION BY RANGE (decided);
COMMENT ON TABLE dispatch_decision IS 'One row for each dispatch that left its lane: what was decided about it, and why.';
COMMENT ON COLUMN dispatch_decision.instance IS 'The sender''s instance, 64 bits; with sequence, slot and copy it is the id.';
COMMENT ON COLUMN dispatch_decision.lane IS 'The priority that was claimed.';
COMMENT ON COLUMN dispatch_decision.class IS 'The priority that it went in.';
COMMENT ON COLUMN dispatch_decision.outcome IS 'Where it ended with the decision; otherwise dispatch_completion has it.';
COMMENT ON COLUMN dispatch_decision.block IS 'The sequence of its audit block in shard and epoch.';

-- By id, by root and by conversation. Entries of one envelope share one key; what has no root or no
-- conversation costs no entry. Time is found by block range, agents within a time by reading it.
CREATE INDEX dispatch_decision_id ON dispatch_decision (instance, sequence);
CREATE INDEX dispatch_decision_root ON dispatch_decision (root_instance, root_sequence) WHERE root_instance IS NOT NULL;
CREATE INDEX dispatch_decision_conversation ON dispatch_decision (conversation) WHERE conversation IS NOT NULL;
CREATE INDEX dispatch_decision_time ON dispatch_decision USING brin (decided) WITH (pages_per_range = 32, autosummarize = on);

CREATE TABLE dispatch_completion (
    instance bigint NOT NULL,
    sequence bigint NOT NULL,
    completed timestamptz NOT NULL,
    lane_us bigint NOT NULL,
    inbox_us bigint NOT NULL,
    ran_us bigint NOT NULL,
    latency_us bigint NOT NULL,
    runner bigint,
    epoch bigint NOT NULL,
    block bigint NOT NULL,
    slot integer NOT NULL,
    copy integer NOT NULL,
    shard smallint NOT NULL,
    outcome smallint NOT NULL,
    reason smallint NOT NULL,
    attempt smallint NOT NULL,
    late boolean NOT NULL,
    source text NOT NULL,
    target text,
    response_hash bytea
) PARTITION BY RANGE (completed);
COMMENT ON TABLE dispatch_completion IS 'One row for each end of an admitted dispatch. A late one came after the outcome and changes nothing.';

CREATE INDEX dispatch_completion_id ON dispatch_completion (instance, sequence);
CREATE INDEX dispatch_completion_time ON dispatch_completion USING brin (completed) WITH (pages_per_range = 32, autosummarize = on);

CREATE TABLE audit_note (
    at timestamptz NOT NULL,
    epoch bigint NOT NULL,
    block bigint NOT NULL,
    shard smallint NOT NULL,
    kind text NOT NULL,
    agent text,
    body text NOT NULL
) PARTITION BY RANGE (at);
COMMENT ON TABLE audit_note IS 'What else happened: registrations, breaker and scale changes, policies, operators'' actions, take-overs, archive alarms.';
CREATE INDEX audit_note_time ON audit_note (at);

CREATE TABLE archive_cursor (
    shard smallint PRIMARY KEY,
    epoch bigint NOT NULL DEFAULT 0,
    sequence bigint NOT NULL DEFAULT 0,
    hash bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex'),
    archived_at timestamptz,
    stopped text
);
COMMENT ON TABLE archive_cursor IS 'The last archived block of each shard. It moves by compare-and-set, with the rows, in one transaction.';
COMMENT ON COLUMN archive_cursor.stopped IS 'Why the shard is not archived any further; null while it is.';
INSERT INTO archive_cursor (shard) SELECT generate_series(0, 63);
