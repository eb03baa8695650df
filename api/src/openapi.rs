//! For the tests of the servers: their OpenAPI descriptions are files of this crate.

use std::collections::BTreeSet;
use std::path::Path;
use std::{env, fs};

use utoipa::openapi::{OpenApi, RefOr};

use crate::PROBLEM_JSON;

/// Compares a description, generated from a server's handlers, with `openapi/NAME.json`. With `GARRET_WRITE_OPENAPI` in
/// the environment it writes that file instead.
///
/// # Panics
/// They differ, or two calls have the same `operationId`.
pub fn check(name: &str, description: &OpenApi) {
    assert_unique_ids(description);
    let mut description = description.clone();
    name_problems(&mut description);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("openapi/{name}.json"));
    let text = description.to_pretty_json().expect("the description is plain data") + "\n";
    if env::var_os("GARRET_WRITE_OPENAPI").is_some() {
        fs::write(&path, &text).expect("the file can be written");
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "{} is out of date: run this test with GARRET_WRITE_OPENAPI=1", path.display());
}

/// All problems are sent as [`PROBLEM_JSON`]. The handlers' annotations would repeat it at each response.
fn name_problems(description: &mut OpenApi) {
    for item in description.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter().flatten() {
            for (status, response) in &mut operation.responses.responses {
                let RefOr::T(response) = response else { continue };
                if status.starts_with(['4', '5'])
                    && let Some(content) = response.content.swap_remove("application/json")
                {
                    response.content.insert(PROBLEM_JSON.into(), content);
                }
            }
        }
    }
}

/// A generated client has a function per `operationId`.
fn assert_unique_ids(description: &OpenApi) {
    let mut ids = BTreeSet::new();
    for (path, item) in &description.paths.paths {
        for operation in [&item.get, &item.put, &item.post, &item.delete].into_iter().flatten() {
            let id = operation.operation_id.as_deref().unwrap_or_default();
            assert!(!id.is_empty() && ids.insert(id), "{path}: operationId {id:?}");
        }
    }
}
