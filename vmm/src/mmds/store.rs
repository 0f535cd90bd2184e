//! The metadata themselves: a JSON object that clients of the API write and a guest reads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

/// Metadata cannot be changed so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
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

/// The store. The main thread alone writes to it; a guest's card reads it from its own thread. The lock is held for
/// as long as it takes to copy a pointer, so that neither waits for what the other does with the metadata.
#[derive(Debug)]
pub struct Metadata {
    data: Mutex<Option<Arc<Value>>>,
    limit: usize,
}

impl Metadata {
    /// An empty store for so many bytes of compact JSON.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            data: Mutex::default(),
            limit,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Value>>> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it; `None` before anything was put there.
    #[must_use]
    pub fn get(&self) -> Option<Arc<Value>> {
        self.lock().clone()
    }

    /// Replaces all of it.
    ///
    /// # Errors
    /// When it is too large; then nothing is changed.
    pub fn put(&self, data: Value) -> Result<(), MetadataError> {
        let size = data.to_string().len();
        if size > self.limit {
            return Err(MetadataError::TooLarge {
                size,
                limit: self.limit,
            });
        }
        let before = self.lock().replace(Arc::new(data));
        // Not under the lock: it may be large.
        drop(before);
        Ok(())
    }

    /// Merges `patch` into it (RFC 7396).
    ///
    /// # Errors
    /// When there is nothing yet, or the result is too large; then nothing is changed.
    pub fn patch(&self, patch: Value) -> Result<(), MetadataError> {
        // Nobody else writes meanwhile.
        let data = self.get().ok_or(MetadataError::Nothing)?;
        let mut data = Value::clone(&data);
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
        let store = Metadata::new(16);
        assert_eq!(store.get(), None);
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
        assert_eq!(*store.get().expect("put"), json!({"a":"12345678"}));
        store.patch(json!({"a":null,"b":1})).expect("shorter");
        assert_eq!(*store.get().expect("put"), json!({"b":1}));
    }
}
