-- What people read: dispatches with names instead of numbers, and the log under the names of the article.

CREATE FUNCTION dispatch_id(instance bigint, sequence bigint, slot integer, copy integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 'd-' || lpad(to_hex(instance), 16, '0') || '-' || to_hex(sequence) || '-' || to_hex(slot)
    || CASE WHEN copy = 0 THEN '' ELSE '.' || to_hex(copy) END;
COMMENT ON FUNCTION dispatch_id IS 'The printed form of an id.';

CREATE FUNCTION hex_number(digits text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ('x' || lpad(digits, 16, '0'))::bit(64)::bigint;

-- One row for each dispatch decided at or after a time, with its end. A plain SQL function, so that it is inlined and its
-- callers' conditions reach the indexes; an end is looked for only in partitions that can hold it.
CREATE FUNCTION dispatches_since(since timestamptz)
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
        c.inbox_us, c.ran_us,
        CASE WHEN d.outcome IS NULL THEN c.latency_us
            ELSE (extract(epoch FROM d.decided - d.accepted) * 1000000)::bigint END,
        c.attempt, lpad(to_hex(c.runner), 16, '0'),
        encode(d.payload_hash, 'hex'), encode(c.response_hash, 'hex'), d.policy_version,
        d.shard, d.epoch, d.block,
        d.instance, d.sequence, d.slot, d.copy, d.root_instance, d.root_sequence, d.root_slot
    FROM dispatch_decision d
    LEFT JOIN dispatch_completion c
        ON c.instance = d.instance AND c.sequence = d.sequence AND c.slot = d.slot AND c.copy = d.copy
        AND NOT c.late AND c.completed >= $1 - interval '1 minute'
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

CREATE VIEW dispatch AS SELECT * FROM dispatches_since('-infinity');
COMMENT ON VIEW dispatch IS 'One row for each dispatch: decision, waits, end. Conditions on instance and sequence, root_instance and root_sequence, conversation, and decided are quick.';

-- The log under the article's names: one row for each request, event, response and error. A request that ended has a row of
-- its own and one for what its caller got: from whom it came, how long it took beyond waiting and running, its own hash.
CREATE FUNCTION dispatch_log_since(since timestamptz)
RETURNS TABLE (
    dispatch_id text, "timestamp" timestamptz, source text, target text, type text, capability text,
    latency_ms numeric, outcome text, priority text, payload_hash text,
    reason text, decision text, lane text, lane_ms numeric, inbox_ms numeric, ran_ms numeric, attempt smallint,
    root text, parent text, conversation text, policy_version integer, shard smallint, epoch bigint, block bigint,
    instance bigint, sequence bigint, slot integer, copy integer, decided timestamptz
)
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT d.dispatch_id, d.accepted, d.source, d.target, d.kind, d.capability,
        round(d.latency_us / 1000.0, 3), d.outcome, d.class, d.payload_hash,
        d.reason, d.decision, d.lane,
        round(d.lane_us / 1000.0, 3), round(d.inbox_us / 1000.0, 3), round(d.ran_us / 1000.0, 3), d.attempt,
        d.root, d.parent, d.conversation, d.policy_version, d.shard, d.epoch, d.block,
        d.instance, d.sequence, d.slot, d.copy, d.decided
    FROM dispatches_since($1) d
    UNION ALL
    SELECT d.dispatch_id || '/reply', coalesce(d.completed, d.decided), d.target, d.source,
        CASE WHEN d.outcome = 'success' OR d.reason = 'fallback_static' THEN 'response' ELSE 'error' END, d.capability,
        CASE WHEN d.completed IS NOT NULL AND d.ran_us IS NOT NULL
            THEN round(greatest(d.latency_us - d.lane_us - d.inbox_us - d.ran_us, 0) / 1000.0, 3) END,
        d.outcome, d.class, d.response_hash,
        d.reason, d.decision, d.lane, NULL, NULL, NULL, d.attempt,
        d.root, d.dispatch_id, d.conversation, d.policy_version, d.shard, d.epoch, d.block,
        d.instance, d.sequence, d.slot, d.copy, d.decided
    FROM dispatches_since($1) d
    WHERE d.kind = 'request' AND d.outcome IS NOT NULL
$$;

CREATE VIEW dispatch_log AS SELECT * FROM dispatch_log_since('-infinity');
COMMENT ON VIEW dispatch_log IS 'One row for each request, event, response and error, under the names of the article. By id: use dispatch_log_of(id).';

CREATE FUNCTION dispatch_log_of(id text) RETURNS SETOF dispatch_log
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT * FROM dispatch_log
    WHERE instance = hex_number(split_part(split_part($1, '/', 1), '-', 2))
        AND sequence = hex_number(split_part(split_part($1, '/', 1), '-', 3))
        AND slot = hex_number(split_part(split_part(split_part($1, '/', 1), '-', 4), '.', 1))
        AND copy = hex_number(split_part(split_part(split_part($1, '/', 1), '-', 4), '.', 2))
$$;
COMMENT ON FUNCTION dispatch_log_of IS 'The log of one dispatch and its reply, by its printed id.';
