-- What must not be forgotten although its time has come.

CREATE TABLE legal_hold (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    from_day date,
    to_day date,
    conversation text,
    agent text,
    reason text NOT NULL CHECK (reason <> ''),
    placed_by text NOT NULL CHECK (placed_by <> ''),
    placed_at timestamptz NOT NULL DEFAULT now(),
    released_by text,
    released_at timestamptz,
    CHECK (from_day IS NOT NULL OR to_day IS NOT NULL OR conversation IS NOT NULL OR agent IS NOT NULL),
    CHECK (from_day <= to_day)
);
COMMENT ON TABLE legal_hold IS 'Days that retention keeps: those in the range that, where a conversation or an agent is named, hold anything about it.';

-- Whether a UTC day is under hold: within the days of a hold, and, where that names a conversation or an agent, holding a dispatch of
-- it, its end, or a note about it. Ends count by the dispatch they belong to, so that no day of a dispatch outlives the other.
CREATE FUNCTION day_is_held(day date) RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT EXISTS (
        SELECT 1 FROM legal_hold h
        WHERE h.released_at IS NULL
            AND $1 BETWEEN coalesce(h.from_day, '-infinity') AND coalesce(h.to_day, 'infinity')
            AND (
                (h.conversation IS NULL AND h.agent IS NULL)
                OR EXISTS (
                    SELECT 1 FROM dispatch_decision d
                    WHERE d.decided >= $1::timestamp AT TIME ZONE 'UTC' AND d.decided < ($1 + 1)::timestamp AT TIME ZONE 'UTC'
                        AND (d.conversation = h.conversation OR h.agent IN (d.source, d.target))
                )
                OR EXISTS (
                    SELECT 1 FROM dispatch_completion c
                    WHERE c.completed >= $1::timestamp AT TIME ZONE 'UTC' AND c.completed < ($1 + 1)::timestamp AT TIME ZONE 'UTC'
                        AND h.agent IN (c.source, c.target)
                )
                OR (h.conversation IS NOT NULL AND EXISTS (
                    SELECT 1 FROM dispatch_decision d
                    JOIN dispatch_completion c
                        ON c.instance = d.instance AND c.sequence = d.sequence AND c.slot = d.slot AND c.copy = d.copy
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
COMMENT ON FUNCTION day_is_held IS 'Whether retention must keep a UTC day.';
