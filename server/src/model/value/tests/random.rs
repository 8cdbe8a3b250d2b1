//! Seeded random values, through text and back.

use super::{SqlType, Value, ty};

/// A small generator (xorshift64*): the same values in every run, and no dependency.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn text(&mut self) -> String {
        let alphabet: Vec<char> = "ab\\\"'{}(),;NUL null\t\n\u{1}äß😀".chars().collect();
        (0..self.below(9)).map(|_| alphabet[self.below(alphabet.len() as u64) as usize]).collect()
    }

    fn scalar(&mut self, ty: &SqlType) -> Value {
        if self.below(8) == 0 {
            return Value::Null;
        }
        match ty {
            SqlType::Bool => Value::Bool(self.below(2) == 0),
            SqlType::Int2 => Value::Int(i64::from(self.next() as i16)),
            SqlType::Int8 => Value::Int(self.next() as i64),
            SqlType::Float4 => Value::Double(f64::from(f32::from_bits(self.next() as u32))),
            SqlType::Float8 => Value::Double(f64::from_bits(self.next())),
            SqlType::Bytea => Value::Bytes((0..self.below(9)).map(|_| self.next() as u8).collect()),
            _ => Value::Text(self.text()),
        }
    }

    fn array(&mut self, ty: &SqlType, dimensions: &[u64]) -> Value {
        let Some((length, rest)) = dimensions.split_first() else { return self.scalar(ty) };
        Value::Array((0..*length).map(|_| self.array(ty, rest)).collect())
    }
}

/// NaN is equal to itself here, and the two zeros are not.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Double(one), Value::Double(other)) => {
            (one.is_nan() && other.is_nan()) || one.to_bits() == other.to_bits()
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (one, other) => one == other,
    }
}

#[test]
fn random_values_come_back_from_their_text() {
    let mut random = Random(0x00dd_ba11);
    for name in ["bool", "int2", "int8", "float4", "float8", "bytea", "text", "shop.status", "box"] {
        let element = ty(name);
        let array = SqlType::Array(Box::new(element.clone()));
        for _ in 0..2_000 {
            let dimensions: Vec<u64> = (0..=random.below(3)).map(|_| 1 + random.below(3)).collect();
            let (scalar, nested) = (random.scalar(&element), random.array(&element, &dimensions));
            for (value, ty) in [(scalar, &element), (nested, &array)] {
                let text = value.to_sql_text(ty).unwrap_or_else(|error| panic!("{value:?} {error}"));
                let back = Value::from_sql_text(text.as_deref(), ty).expect("what was written can be read");
                assert!(same(&value, &back), "{value:?} came back as {back:?} from {text:?}");
            }
        }
    }
}
