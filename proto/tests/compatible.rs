//! Holds the wire contract against the one that was released: what a client was built with stays understood.
//!
//! `released/outbox.v1.bin` is the descriptor set of the last release, replaced when a new one is made, by a copy of
//! `src/gen/descriptor.bin`; before the first one, that of a day on which everything in it was meant to stay. Adding is free;
//! what is refused is listed where it is found. Names count as well as numbers: JSON and generated code go by them.

use std::{collections::BTreeMap, fs, path::Path};

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, field_descriptor_proto::Label,
};

const PACKAGE: &str = "outbox.v1";

#[test]
fn a_released_client_is_still_understood() {
    let breaks = compare(&read("released/outbox.v1.bin"), &read("src/gen/descriptor.bin"));
    assert!(breaks.is_empty(), "these changes break released clients:\n{}", breaks.join("\n"));
}

#[test]
fn each_breaking_change_is_found() {
    type Change = fn(&mut FileDescriptorSet);
    fn message<'a>(set: &'a mut FileDescriptorSet, name: &str) -> &'a mut DescriptorProto {
        let messages = set.file.iter_mut().flat_map(|file| &mut file.message_type);
        messages.into_iter().find(|message| message.name() == name).expect("the message is there")
    }
    let cases: [(&str, Change); 15] = [
        ("service OutboxService is gone", |set| set.file.iter_mut().for_each(|file| file.service.clear())),
        ("method OutboxService.Commit is gone", |set| {
            set.file.iter_mut().flat_map(|file| &mut file.service).for_each(|service| service.method.clear());
        }),
        ("message Row is gone", |set| {
            set.file.iter_mut().for_each(|file| file.message_type.retain(|m| m.name() != "Row"));
        }),
        ("field Row.values is gone", |set| message(set, "Row").field.clear()),
        ("field Row.values has number 2 instead of 1", |set| message(set, "Row").field[0].number = Some(2)),
        ("field Row.values has another type", |set| message(set, "Row").field[0].type_name = Some(".other".into())),
        ("field Row.values has another type", |set| message(set, "Row").field[0].set_label(Label::Optional)),
        ("field Value.bool has left its oneof", |set| message(set, "Value").field[1].oneof_index = None),
        ("message ParametersEntry of CommandCall is gone", |set| message(set, "CommandCall").nested_type.clear()),
        ("value DISPOSITION_APPLIED has another number", |set| {
            let enums = set.file.iter_mut().flat_map(|file| &mut file.enum_type);
            let values = enums.flat_map(|e| &mut e.value);
            values.filter(|value| value.name() == "DISPOSITION_APPLIED").for_each(|value| value.number = Some(77));
        }),
        ("option rpc is gone", |set| set.file.iter_mut().for_each(|file| file.extension.clear())),
        ("option rpc has another number or type", |set| {
            set.file.iter_mut().flat_map(|file| &mut file.extension).for_each(|option| option.number = Some(1));
        }),
        ("option rpc has another number or type", |set| {
            set.file.iter_mut().flat_map(|file| &mut file.extension).for_each(|option| option.type_name = None);
        }),
        ("option rpc has another number or type", |set| {
            let options = set.file.iter_mut().flat_map(|file| &mut file.extension);
            options.for_each(|option| option.set_label(Label::Repeated));
        }),
        ("value DISPOSITION_APPLIED is gone", |set| {
            set.file.iter_mut().flat_map(|file| &mut file.enum_type).for_each(|e| e.value.clear());
        }),
    ];
    let released = read("released/outbox.v1.bin");
    assert_eq!(compare(&released, &released), Vec::<String>::new());
    for (expected, change) in cases {
        let mut changed = released.clone();
        change(&mut changed);
        let breaks = compare(&released, &changed);
        assert!(breaks.iter().any(|found| found.contains(expected)), "{expected}: {breaks:?}");
    }
}

fn read(path: &str) -> FileDescriptorSet {
    let bytes = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("the descriptor set can be read");
    FileDescriptorSet::decode(bytes.as_slice()).expect("it is a descriptor set")
}

/// Request and response types, and which side streams.
type Signature<'a> = (&'a str, &'a str, bool, bool);

/// Everything of the package by name.
#[derive(Default)]
struct Contract<'a> {
    services: BTreeMap<&'a str, BTreeMap<&'a str, Signature<'a>>>,
    messages: BTreeMap<&'a str, &'a DescriptorProto>,
    enums: BTreeMap<&'a str, &'a EnumDescriptorProto>,
    /// Extensions of other messages: the options that operators' own files carry.
    options: BTreeMap<&'a str, &'a FieldDescriptorProto>,
}

fn contract(set: &FileDescriptorSet) -> Contract<'_> {
    let mut contract = Contract::default();
    for file in set.file.iter().filter(|file| file.package() == PACKAGE) {
        for service in &file.service {
            let methods = service.method.iter().map(|method| {
                let streams = (method.client_streaming(), method.server_streaming());
                (method.name(), (method.input_type(), method.output_type(), streams.0, streams.1))
            });
            contract.services.insert(service.name(), methods.collect());
        }
        contract.messages.extend(file.message_type.iter().map(|message| (message.name(), message)));
        contract.enums.extend(file.enum_type.iter().map(|e| (e.name(), e)));
        contract.options.extend(file.extension.iter().map(|option| (option.name(), option)));
    }
    contract
}

fn compare(released: &FileDescriptorSet, now: &FileDescriptorSet) -> Vec<String> {
    let (released, now) = (contract(released), contract(now));
    let mut breaks = Vec::new();
    for (service, methods) in &released.services {
        let Some(present) = now.services.get(service) else {
            breaks.push(format!("service {service} is gone"));
            continue;
        };
        for (method, signature) in methods {
            match present.get(method) {
                None => breaks.push(format!("method {service}.{method} is gone")),
                Some(other) if other != signature => breaks.push(format!("method {service}.{method} has other types")),
                Some(_) => {}
            }
        }
    }
    for (name, message) in &released.messages {
        match now.messages.get(name) {
            Some(present) => compare_fields(message, present, &mut breaks),
            None => breaks.push(format!("message {name} is gone")),
        }
    }
    for (name, released) in &released.enums {
        let present = now.enums.get(name).map(|e| e.value.as_slice()).unwrap_or_default();
        for value in &released.value {
            match present.iter().find(|other| other.name() == value.name()) {
                None => breaks.push(format!("value {} is gone from {name}", value.name())),
                Some(other) if other.number() != value.number() => {
                    breaks.push(format!("value {} has another number", value.name()));
                }
                Some(_) => {}
            }
        }
    }
    for (name, released) in &released.options {
        let shape = |option: &FieldDescriptorProto| {
            let (kind, extended) = (option.type_name().to_owned(), option.extendee().to_owned());
            (option.number(), option.r#type(), option.label(), kind, extended)
        };
        match now.options.get(name) {
            None => breaks.push(format!("option {name} is gone")),
            Some(present) if shape(present) != shape(released) => {
                breaks.push(format!("option {name} has another number or type"));
            }
            Some(_) => {}
        }
    }
    breaks
}

fn compare_fields(released: &DescriptorProto, now: &DescriptorProto, breaks: &mut Vec<String>) {
    // A map's entries are a message of their own, inside.
    for nested in &released.nested_type {
        match now.nested_type.iter().find(|other| other.name() == nested.name()) {
            Some(present) => compare_fields(nested, present, breaks),
            None => breaks.push(format!("message {} of {} is gone", nested.name(), released.name())),
        }
    }
    let oneof = |message: &DescriptorProto, field: &FieldDescriptorProto| {
        let index = field.oneof_index.and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| message.oneof_decl.get(index)).map(|oneof| oneof.name().to_owned())
    };
    for field in &released.field {
        let path = format!("field {}.{}", released.name(), field.name());
        let Some(present) = now.field.iter().find(|other| other.name() == field.name()) else {
            breaks.push(format!("{path} is gone"));
            continue;
        };
        let number = present.number();
        if number != field.number() {
            breaks.push(format!("{path} has number {number} instead of {}", field.number()));
        }
        let shape = |f: &FieldDescriptorProto| (f.r#type(), f.type_name().to_owned(), f.label());
        if shape(present) != shape(field) {
            breaks.push(format!("{path} has another type"));
        }
        if oneof(now, present) != oneof(released, field) {
            breaks.push(format!("{path} has left its oneof"));
        }
    }
}
