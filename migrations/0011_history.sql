-- What an event's history tells of a hold that has ended.

-- Of a batch that was drained from holds: by position, when the event was held and why, as `[time, reason]`.
alter table outbox.deliveries add column held jsonb;
