//! Client and idempotent Kafka consumer for outboxd.
