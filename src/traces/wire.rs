//! Spans as OTLP has them: the message `ExportTraceServiceRequest`, in protobuf.
//!
//! Source of the numbers: opentelemetry-proto 1.x, `trace/v1/trace.proto`, `common/v1/common.proto`. They are what never
//! changes in protobuf.

use super::{Data, Value};

/// Of `Span.flags`: it is sampled, and whether its parent is another process's is known: it never is.
const FLAGS: u32 = 0x101;
/// Of `Status.code`.
const STATUS_CODE_ERROR: u64 = 2;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

/// A message that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
    }

    fn tag(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn number(&mut self, field: u64, number: u64) {
        self.tag(field, VARINT);
        self.varint(number);
    }

    fn fixed64(&mut self, field: u64, number: u64) {
        self.tag(field, FIXED64);
        self.0.extend(number.to_le_bytes());
    }

    fn fixed32(&mut self, field: u64, number: u32) {
        self.tag(field, FIXED32);
        self.0.extend(number.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.tag(field, LENGTH);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn message(&mut self, field: u64, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    fn attribute(&mut self, field: u64, key: &str, value: &Value) {
        self.message(field, |pair| {
            pair.bytes(1, key.as_bytes());
            pair.message(2, |any| match value {
                Value::Text(text) => any.bytes(1, text.as_bytes()),
                // As protobuf has it: the two's complement.
                Value::Number(number) => any.number(3, u64::from_le_bytes(number.to_le_bytes())),
            });
        });
    }
}

/// Spans of one process, ready to be sent.
pub fn request(resource: &[(String, String)], spans: &[Box<Data>]) -> Vec<u8> {
    let mut request = Message::default();
    request.message(1, |of_resource| {
        of_resource.message(1, |described| {
            for (key, value) in resource {
                described.attribute(1, key, &Value::Text(value.clone()));
            }
        });
        of_resource.message(2, |of_scope| {
            of_scope.message(1, |scope| {
                scope.bytes(1, env!("CARGO_PKG_NAME").as_bytes());
                scope.bytes(2, env!("CARGO_PKG_VERSION").as_bytes());
            });
            for span in spans {
                of_scope.message(2, |message| write(message, span));
            }
        });
    });
    request.0
}

fn write(message: &mut Message, span: &Data) {
    let Data { ids, parent, name, side, start_time, start: _, elapsed, attributes, error } = span;
    message.bytes(1, &ids.trace);
    message.bytes(2, &ids.span);
    if let Some(parent) = parent {
        message.bytes(4, parent);
    }
    message.bytes(5, name.as_bytes());
    message.number(6, *side as u64);
    // A clock that stands before 1970 or after 2554 has no such number.
    let start = u64::try_from(start_time.as_nanosecond()).unwrap_or_default();
    message.fixed64(7, start);
    message.fixed64(8, start.saturating_add(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)));
    for (key, value) in attributes {
        message.attribute(9, key, value);
    }
    if let Some(error) = error {
        message.message(15, |status| {
            if let Value::Text(text) = error {
                status.bytes(2, text.as_bytes());
            }
            status.number(3, STATUS_CODE_ERROR);
        });
    }
    message.fixed32(16, FLAGS);
}
