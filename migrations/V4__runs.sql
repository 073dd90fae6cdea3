-- Runs: one row for a stretch of dispatches that were decided alike, and one for those that ended alike, instead of a row for each.
-- What was read so far reads on: views of the former names and columns say each dispatch by itself.
--
-- The tables stay where they are and change in an instant, however large: a row of before is a run of one.

ALTER TABLE dispatch_decision RENAME TO decision_run;
ALTER TABLE decision_run RENAME COLUMN payload_hash TO payload_hashes;
ALTER TABLE decision_run ALTER COLUMN payload_hashes SET STORAGE EXTERNAL;
ALTER TABLE decision_run ADD COLUMN count integer NOT NULL DEFAULT 1;
ALTER TABLE decision_run ALTER COLUMN count DROP DEFAULT;
ALTER INDEX dispatch_decision_id RENAME TO decision_run_id;
ALTER INDEX dispatch_decision_root RENAME TO decision_run_root;
ALTER INDEX dispatch_decision_conversation RENAME TO decision_run_conversation;
ALTER INDEX dispatch_decision_time RENAME TO decision_run_time;
COMMENT ON TABLE decision_run IS 'One row for each stretch of slots of an envelope that left their lane alike. dispatch_decision says each by itself.';
COMMENT ON COLUMN decision_run.instance IS 'The sender''s instance, 64 bits; with sequence, slot and copy it is the id.';
COMMENT ON COLUMN decision_run.slot IS 'The first slot.';
COMMENT ON COLUMN decision_run.count IS 'How many slots, one behind the other.';
COMMENT ON COLUMN decision_run.payload_hashes IS 'The keyed hashes of the payloads: 16 bytes for each slot, in order.';
COMMENT ON COLUMN decision_run.outcome IS 'Where it ended with the decision; otherwise completion_run has it.';

ALTER TABLE dispatch_completion RENAME TO completion_run;
ALTER TABLE completion_run RENAME COLUMN response_hash TO response_hashes;
ALTER TABLE completion_run ALTER COLUMN response_hashes SET STORAGE EXTERNAL;
ALTER TABLE completion_run ALTER COLUMN inbox_us DROP NOT NULL;
ALTER TABLE completion_run ALTER COLUMN ran_us DROP NOT NULL;
ALTER TABLE completion_run ADD COLUMN count integer NOT NULL DEFAULT 1;
ALTER TABLE completion_run ALTER COLUMN count DROP DEFAULT;
ALTER TABLE completion_run ADD COLUMN slots bit varying;
ALTER TABLE completion_run ADD COLUMN inbox_each integer[];
ALTER TABLE completion_run ADD COLUMN ran_each integer[];
ALTER TABLE completion_run ALTER COLUMN slots SET STORAGE EXTERNAL;
ALTER TABLE completion_run ALTER COLUMN inbox_each SET STORAGE EXTERNAL;
ALTER TABLE completion_run ALTER COLUMN ran_each SET STORAGE EXTERNAL;
ALTER INDEX dispatch_completion_id RENAME TO completion_run_id;
ALTER INDEX dispatch_completion_time RENAME TO completion_run_time;
COMMENT ON TABLE completion_run IS 'One row for the admitted dispatches of an envelope that ended alike in one block. dispatch_completion says each by itself. Late ones came after the outcome and change nothing.';
COMMENT ON COLUMN completion_run.slot IS 'The first slot.';
COMMENT ON COLUMN completion_run.count IS 'How many slots.';
COMMENT ON COLUMN completion_run.slots IS 'Which slots from the first on: a bit for each, to the last. Null where they stand one behind the other.';
COMMENT ON COLUMN completion_run.inbox_us IS 'Microseconds from admission to the start of the handler, the same for all; null where inbox_each has them.';
COMMENT ON COLUMN completion_run.inbox_each IS 'The same for each slot, in order: the lower 32 bits.';
COMMENT ON COLUMN completion_run.ran_us IS 'Microseconds in the handler, the same for all; null where ran_each has them.';
COMMENT ON COLUMN completion_run.ran_each IS 'The same for each slot, in order: the lower 32 bits.';
COMMENT ON COLUMN completion_run.response_hashes IS 'The keyed hashes of the responses: 16 bytes for all or for each slot, in order, zero for none; null where there is none.';

-- A day's partitions are found by their names.
DO $$
DECLARE
    day record;
BEGIN
    FOR day IN
        SELECT child.relname AS former,
            replace(replace(child.relname, 'dispatch_decision', 'decision_run'), 'dispatch_completion', 'completion_run') AS name
        FROM pg_inherits
        JOIN pg_class child ON child.oid = inhrelid
        JOIN pg_class parent ON parent.oid = inhparent
        WHERE parent.oid IN ('decision_run'::regclass, 'completion_run'::regclass)
    LOOP
        EXECUTE format('ALTER TABLE %I RENAME TO %I', day.former, day.name);
    END LOOP;
END
$$;

-- The place of a slot in a run, from 1; null where the run does not hold it.
CREATE FUNCTION run_place(first integer, count integer, slots bit varying, slot integer) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN slot < first THEN NULL
    WHEN slots IS NULL THEN CASE WHEN slot < first + count THEN slot - first + 1 END
    WHEN slot - first >= length(slots) THEN NULL
    WHEN get_bit(slots, slot - first) = 1 THEN bit_count(substring(slots FROM 1 FOR slot - first + 1))::integer
END;

-- The hash at a place of a run of responses, of which one may be that of all.
CREATE FUNCTION run_hash(hashes bytea, place integer) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN length(hashes) = 16 THEN hashes
    ELSE nullif(substr(hashes, place * 16 - 15, 16), '\x00000000000000000000000000000000') END;

-- Slots are laid out by an array, since the planner takes one for short, and a series for a thousand rows. The hashes are
-- fetched once for a run, and not at all where nobody asks for them.
CREATE VIEW dispatch_decision AS
SELECT r.instance, r.sequence, r.accepted, r.decided, r.deadline, r.root_instance, r.root_sequence,
    r.parent_instance, r.parent_sequence, r.epoch, r.block, r.slot + each.n::integer - 1 AS slot, r.copy,
    r.root_slot, r.root_copy, r.parent_slot, r.parent_copy, r.policy_version, r.shard, r.kind, r.lane, r.class,
    r.decision, r.reason, r.outcome, r.source, r.target, r.capability, r.conversation,
    substr(whole.hashes, each.n::integer * 16 - 15, 16) AS payload_hash
FROM decision_run r
CROSS JOIN LATERAL (SELECT r.payload_hashes || ''::bytea AS hashes OFFSET 0) whole
CROSS JOIN LATERAL unnest(array_fill(0, ARRAY[r.count])) WITH ORDINALITY AS each(zero, n);
COMMENT ON VIEW dispatch_decision IS 'One row for each dispatch that left its lane: what was decided about it, and why.';
COMMENT ON COLUMN dispatch_decision.instance IS 'The sender''s instance, 64 bits; with sequence, slot and copy it is the id.';
COMMENT ON COLUMN dispatch_decision.lane IS 'The priority that was claimed.';
COMMENT ON COLUMN dispatch_decision.class IS 'The priority that it went in.';
COMMENT ON COLUMN dispatch_decision.outcome IS 'Where it ended with the decision; otherwise dispatch_completion has it.';
COMMENT ON COLUMN dispatch_decision.block IS 'The sequence of its audit block in shard and epoch.';

CREATE VIEW dispatch_completion AS
SELECT r.instance, r.sequence, r.completed, r.lane_us, coalesce(r.inbox_us, r.inbox_each[each.place] & 4294967295) AS inbox_us,
    coalesce(r.ran_us, r.ran_each[each.place] & 4294967295) AS ran_us, r.latency_us, r.runner, r.epoch, r.block,
    each.slot, r.copy, r.shard, r.outcome, r.reason, r.attempt, r.late, r.source, r.target,
    run_hash(r.response_hashes, each.place) AS response_hash
FROM completion_run r
CROSS JOIN LATERAL (
    SELECT r.slot + n::integer - 1 AS slot, run_place(r.slot, r.count, r.slots, r.slot + n::integer - 1) AS place
    FROM unnest(array_fill(0, ARRAY[coalesce(length(r.slots), r.count)])) WITH ORDINALITY AS laid(zero, n)
) each
WHERE each.place IS NOT NULL;
COMMENT ON VIEW dispatch_completion IS 'One row for each end of an admitted dispatch. A late one came after the outcome and changes nothing.';

-- One row for each dispatch decided at or after a time, with its end. A plain SQL function, so that it is inlined and its
-- callers' conditions reach the indexes; an end is looked for only in partitions that can hold it. Ends are joined by envelope, and a slot
-- is looked up in them: to lay them out first would cost the square of an envelope wherever the planner sees few.
CREATE OR REPLACE FUNCTION dispatches_since(since timestamptz)
RETURNS TABLE (
    dispatch_id text, root text, parent text, conversation text,
    accepted timestamptz, decided timestamptz, completed timestamptz, deadline timestamptz,
    source text, target text, capability text, kind text, lane text, class text,
    decision text, decision_reason text, outcome text, reason text,
    lane_us bigint, inbox_us bigint, ran_us bigint, latency_us bigint, attempt smallint, runner text,
    payload_hash text, response_hash text, policy_version integer,
    shard smallint, epoch bigint, block bigint,
    instance bigint, sequence bigint, slot integer, copy integer,
    root_instance bigint, root_sequence bigint, root_slot integer
)
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT dispatch_id(d.instance, d.sequence, d.slot, d.copy),
        CASE WHEN d.root_instance IS NULL THEN dispatch_id(d.instance, d.sequence, d.slot, 0)
            ELSE dispatch_id(d.root_instance, d.root_sequence, d.root_slot, d.root_copy) END,
        dispatch_id(d.parent_instance, d.parent_sequence, d.parent_slot, d.parent_copy),
        d.conversation, d.accepted, d.decided, c.completed, d.deadline,
        d.source, d.target, d.capability, kind.name, lane.name, class.name,
        decision.name, decision_reason.name, outcome.name, reason.name,
        CASE WHEN c.instance IS NULL THEN (extract(epoch FROM d.decided - d.accepted) * 1000000)::bigint ELSE c.lane_us END,
        coalesce(c.inbox_us, c.inbox_each[run_place(c.slot, c.count, c.slots, d.slot)] & 4294967295),
        coalesce(c.ran_us, c.ran_each[run_place(c.slot, c.count, c.slots, d.slot)] & 4294967295),
        CASE WHEN d.outcome IS NULL THEN c.latency_us
            ELSE (extract(epoch FROM d.decided - d.accepted) * 1000000)::bigint END,
        c.attempt, lpad(to_hex(c.runner), 16, '0'),
        encode(d.payload_hash, 'hex'), encode(run_hash(c.response_hashes, run_place(c.slot, c.count, c.slots, d.slot)), 'hex'), d.policy_version,
        d.shard, d.epoch, d.block,
        d.instance, d.sequence, d.slot, d.copy, d.root_instance, d.root_sequence, d.root_slot
    FROM dispatch_decision d
    LEFT JOIN completion_run c
        ON c.instance = d.instance AND c.sequence = d.sequence AND c.copy = d.copy
        AND run_place(c.slot, c.count, c.slots, d.slot) IS NOT NULL AND NOT c.late AND c.completed >= $1 - interval '1 minute'
    LEFT JOIN word kind ON kind.list = 'kind' AND kind.code = d.kind
    LEFT JOIN word lane ON lane.list = 'priority' AND lane.code = d.lane
    LEFT JOIN word class ON class.list = 'priority' AND class.code = d.class
    LEFT JOIN word decision ON decision.list = 'decision' AND decision.code = d.decision
    LEFT JOIN word decision_reason ON decision_reason.list = 'reason' AND decision_reason.code = d.reason
    LEFT JOIN word outcome ON outcome.list = 'outcome' AND outcome.code = coalesce(d.outcome, c.outcome)
    LEFT JOIN word reason ON reason.list = 'reason'
        AND reason.code = CASE WHEN d.outcome IS NULL THEN coalesce(c.reason, d.reason) ELSE d.reason END
    WHERE d.decided >= $1
$$;

-- Whether a UTC day is under hold: within the days of a hold, and, where that names a conversation or an agent, holding a dispatch of
-- it, its end, or a note about it. Ends count by the dispatch they belong to, so that no day of a dispatch outlives the other.
CREATE OR REPLACE FUNCTION day_is_held(day date) RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT EXISTS (
        SELECT 1 FROM legal_hold h
        WHERE h.released_at IS NULL
            AND $1 BETWEEN coalesce(h.from_day, '-infinity') AND coalesce(h.to_day, 'infinity')
            AND (
                (h.conversation IS NULL AND h.agent IS NULL)
                OR EXISTS (
                    SELECT 1 FROM decision_run d
                    WHERE d.decided >= $1::timestamp AT TIME ZONE 'UTC' AND d.decided < ($1 + 1)::timestamp AT TIME ZONE 'UTC'
                        AND (d.conversation = h.conversation OR h.agent IN (d.source, d.target))
                )
                OR EXISTS (
                    SELECT 1 FROM completion_run c
                    WHERE c.completed >= $1::timestamp AT TIME ZONE 'UTC' AND c.completed < ($1 + 1)::timestamp AT TIME ZONE 'UTC'
                        AND h.agent IN (c.source, c.target)
                )
                OR (h.conversation IS NOT NULL AND EXISTS (
                    SELECT 1 FROM decision_run d
                    JOIN completion_run c
                        ON c.instance = d.instance AND c.sequence = d.sequence AND c.copy = d.copy AND EXISTS (
                            SELECT FROM generate_series(d.slot, d.slot + d.count - 1) AS slots(slot)
                            WHERE run_place(c.slot, c.count, c.slots, slots.slot) IS NOT NULL
                        )
                    WHERE d.conversation = h.conversation
                        AND c.completed >= $1::timestamp AT TIME ZONE 'UTC' AND c.completed < ($1 + 1)::timestamp AT TIME ZONE 'UTC'
                ))
                OR EXISTS (
                    SELECT 1 FROM audit_note n
                    WHERE n.at >= $1::timestamp AT TIME ZONE 'UTC' AND n.at < ($1 + 1)::timestamp AT TIME ZONE 'UTC'
                        AND n.agent = h.agent
                )
            )
    )
$$;
