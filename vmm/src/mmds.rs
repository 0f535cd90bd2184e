//! The store of a microVM's metadata: a JSON object that clients of the API write and a guest reads.
//! (The guest's side comes with network devices.)

use serde_json::Value;

/// Metadata cannot be changed so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MetadataError {
    /// Larger than the limit.
    #[error("the metadata would have {size} bytes of JSON, and {limit} are the limit")]
    TooLarge {
        /// Their size as compact JSON.
        size: usize,
        /// What is allowed.
        limit: usize,
    },
    /// There is nothing to be patched.
    #[error("there are no metadata to be changed: PUT them first")]
    Nothing,
}

/// The store.
#[derive(Debug)]
pub(crate) struct Metadata {
    data: Option<Value>,
    limit: usize,
}

impl Metadata {
    /// An empty store for so many bytes of compact JSON.
    pub(crate) fn new(limit: usize) -> Self {
        Self { data: None, limit }
    }

    /// All of it. Nothing is an empty object.
    pub(crate) fn get(&self) -> Value {
        self.data
            .clone()
            .unwrap_or_else(|| Value::Object(serde_json::Map::new()))
    }

    /// Replaces all of it.
    ///
    /// # Errors
    /// When it is too large; then nothing is changed.
    pub(crate) fn put(&mut self, data: Value) -> Result<(), MetadataError> {
        let size = data.to_string().len();
        if size > self.limit {
            return Err(MetadataError::TooLarge {
                size,
                limit: self.limit,
            });
        }
        self.data = Some(data);
        Ok(())
    }

    /// Merges `patch` into it (RFC 7396).
    ///
    /// # Errors
    /// When there is nothing yet, or the result is too large; then nothing is changed.
    pub(crate) fn patch(&mut self, patch: Value) -> Result<(), MetadataError> {
        let mut data = self.data.clone().ok_or(MetadataError::Nothing)?;
        merge(&mut data, patch);
        self.put(data)
    }
}

/// RFC 7396, section 2. Recurses as deep as the patch, whose depth the JSON parser bounds (128).
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    if let Value::Object(target) = target {
        for (name, value) in patch {
            if value.is_null() {
                target.remove(&name);
            } else {
                merge(target.entry(name).or_insert(Value::Null), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merge_is_that_of_the_rfc() {
        // RFC 7396, appendix A: (original, patch, result)
        let rows = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (
                json!({"a":"b","b":"c"}),
                json!({"a":null}),
                json!({"b":"c"}),
            ),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (
                json!({"a":{"b":"c"}}),
                json!({"a":{"b":"d","c":null}}),
                json!({"a":{"b":"d"}}),
            ),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (
                json!({}),
                json!({"a":{"bb":{"ccc":null}}}),
                json!({"a":{"bb":{}}}),
            ),
        ];
        for (original, patch, result) in rows {
            let mut target = original.clone();
            merge(&mut target, patch.clone());
            assert_eq!(target, result, "{original} {patch}");
        }
    }

    #[test]
    fn limit_holds_for_the_whole_and_a_refusal_changes_nothing() {
        let mut store = Metadata::new(16);
        assert_eq!(store.get(), json!({}));
        assert_eq!(store.patch(json!({"a":1})), Err(MetadataError::Nothing));
        // {"a":"12345678"}: 16 bytes
        store.put(json!({"a":"12345678"})).expect("at the limit");
        let error = store.put(json!({"a":"123456789"}));
        assert_eq!(
            error,
            Err(MetadataError::TooLarge {
                size: 17,
                limit: 16
            })
        );
        assert!(store.patch(json!({"b":1})).is_err());
        assert_eq!(store.get(), json!({"a":"12345678"}));
        store.patch(json!({"a":null,"b":1})).expect("shorter");
        assert_eq!(store.get(), json!({"b":1}));
    }
}
