//! What an error of librdkafka is the fault of: the record, its topic, or the publisher.
//!
//! The one place that tells what is tried again from what is held. What is not known here is never taken for the
//! publisher's fault: it would stop everything else.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::relay::publisher::Fault;

/// What an error is the fault of: the one place that tells what is tried again from what is held.
pub(super) fn fault(error: &KafkaError) -> Fault {
    let KafkaError::MessageProduction(code) = error else { return Fault::Publisher(error.to_string()) };
    let reason = code.to_string();
    match code {
        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownPartition
        | Code::InvalidTopic
        | Code::TopicAuthorizationFailed => Fault::Topic(reason),

        // Nothing but another record, or another setting of the topic, helps.
        Code::MessageSizeTooLarge
        | Code::InvalidMessageSize
        | Code::InvalidRecord
        | Code::InvalidTimestamp
        | Code::MessageBatchTooLarge
        | Code::PolicyViolation
        | Code::UnsupportedForMessageFormat
        | Code::BadMessage => Fault::Record(reason),

        // The producer's own, or what follows another record's failure.
        Code::PurgeQueue
        | Code::PurgeInflight
        | Code::Fatal
        | Code::GaplessGuarantee
        | Code::State
        | Code::Fenced
        | Code::OutOfOrderSequenceNumber
        | Code::DuplicateSequenceNumber
        | Code::UnknownProducerId
        | Code::InvalidProducerEpoch
        | Code::InvalidProducerIdMapping
        | Code::ClusterAuthorizationFailed
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::RequestTimedOut
        | Code::MessageTimedOut
        | Code::TimedOutQueue
        | Code::OperationTimedOut
        | Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::BrokerNotAvailable
        | Code::LeaderNotAvailable
        | Code::ReplicaNotAvailable
        | Code::ThrottlingQuotaExceeded
        | Code::NotLeaderForPartition
        | Code::ISRInsufficient
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::NetworkException
        | Code::KafkaStorageError => Fault::Publisher(reason),

        // Not known: held, so that it keeps nothing else back, and tried again, in case it was innocent.
        _ => Fault::Unclear(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_concerns_the_record_or_its_topic_is_held() {
        let of = |code| fault(&KafkaError::MessageProduction(code));
        assert!(matches!(of(Code::MessageSizeTooLarge), Fault::Record(_)));
        assert!(matches!(of(Code::InvalidRecord), Fault::Record(_)));
        assert!(matches!(of(Code::TopicAuthorizationFailed), Fault::Topic(_)));
        for outage in [Code::MessageTimedOut, Code::PurgeInflight, Code::NotEnoughReplicas, Code::GaplessGuarantee] {
            assert!(matches!(of(outage), Fault::Publisher(_)), "{outage:?}");
        }
        assert!(matches!(of(Code::Unknown), Fault::Unclear(_)), "held, and tried again");
        assert!(matches!(fault(&KafkaError::Global(Code::AllBrokersDown)), Fault::Publisher(_)));
    }
}
