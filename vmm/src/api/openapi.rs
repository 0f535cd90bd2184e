//! The API's own description, served at `GET /openapi.json`.
//!
//! It is written by hand and held against the server from two sides: here, that it has the very
//! endpoints that are routed; in the laboratory (`native/api-document`), that every answer to thousands of
//! requests made from it is one that it allows.

/// The document: OpenAPI 3.1.
pub const DOCUMENT: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::api::request::{Payload, ROUTES};

    const METHODS: [&str; 4] = ["get", "put", "patch", "delete"];

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).expect("JSON")
    }

    /// Every operation: its method, path and description.
    fn operations(document: &Value) -> Vec<(String, String, &Value)> {
        let paths = document["paths"].as_object().expect("paths");
        paths
            .iter()
            .flat_map(|(path, item)| {
                METHODS.iter().filter_map(move |method| {
                    let operation = item.get(*method)?;
                    Some((method.to_uppercase(), path.clone(), operation))
                })
            })
            .collect()
    }

    #[test]
    fn document_has_the_endpoints_that_are_routed() {
        let document = document();
        let described: BTreeSet<_> = operations(&document)
            .into_iter()
            .map(|(method, path, _)| (method, path))
            .collect();
        let routed: BTreeSet<_> = ROUTES
            .iter()
            .map(|route| (route.method.name().to_owned(), route.path.to_owned()))
            .collect();
        assert_eq!(described, routed);
    }

    #[test]
    fn document_has_bodies_where_they_are_taken() {
        let document = document();
        for (method, path, operation) in operations(&document) {
            let route = ROUTES
                .iter()
                .find(|route| route.method.name() == method && route.path == path)
                .expect("routed");
            let required = operation
                .get("requestBody")
                .map(|body| body["required"].as_bool().expect("said"));
            let expected = match route.payload {
                Payload::None => None,
                Payload::Optional => Some(false),
                Payload::Required => Some(true),
            };
            assert_eq!(required, expected, "{method} {path}");
            assert!(
                operation["responses"].get("400").is_some(),
                "{method} {path}"
            );
        }
    }

    #[test]
    fn document_refers_to_nothing_that_it_lacks() {
        fn check(document: &Value, value: &Value) {
            match value {
                Value::Object(members) => {
                    if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
                        let pointer = reference.strip_prefix('#').expect("in this document");
                        assert!(document.pointer(pointer).is_some(), "{reference}");
                    }
                    members.values().for_each(|member| check(document, member));
                }
                Value::Array(items) => items.iter().for_each(|item| check(document, item)),
                _ => {}
            }
        }
        let document = document();
        check(&document, &document);
    }

    #[test]
    fn document_tells_the_products_version() {
        assert_eq!(document()["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
