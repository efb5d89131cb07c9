//! Captures are what `ktstr-monitor schema` says they are: those of every run here, on every kernel.

use std::{fs, path::Path, sync::LazyLock};

use jsonschema::Validator;
use ktstr_proto::{Accel, verdict::Outcome};
use serde_json::{Value, json};

use crate::harness::{run, spec};
use crate::observe::monitor;

static SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
    let printed = monitor(&["schema"]);
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let schema = serde_json::from_slice(&printed.stdout).expect("JSON");
    jsonschema::validator_for(&schema).expect("a schema")
});

/// What of it is not what the schema says.
fn errors(capture: &Value) -> Vec<String> {
    SCHEMA.iter_errors(capture).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// The capture in a file, as the schema says.
pub fn checked(file: &Path) -> Value {
    let capture = serde_json::from_slice(&fs::read(file).expect("a capture")).expect("JSON, whole");
    let errors = errors(&capture);
    assert!(errors.is_empty(), "{}: {errors:#?}", file.display());
    capture
}

/// Every capture of a run is as the schema says.
pub fn check_captures(run_dir: &Path) {
    let files = fs::read_dir(run_dir).into_iter().flatten().flatten().map(|entry| entry.path());
    for file in files.filter(|file| is_capture(file)) {
        checked(&file);
    }
}

fn is_capture(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("capture-") && name.ends_with(".json")
}

#[test]
fn a_capture_that_lacks_or_adds_a_member_is_not_what_the_schema_says() {
    let root = tempfile::tempdir().unwrap();
    let mut spec = spec("healthy", Accel::Tcg);
    spec.snapshots = 1;
    spec.runs_root = root.path().to_owned();
    let report = run(spec);
    assert!(report.outcome <= Outcome::Inconclusive, "{:?}", report.cause);
    let file = report.captures.iter().find_map(|mark| mark.file.as_ref().ok()).expect("a capture");
    let whole = checked(&report.run_dir.join(file));
    assert_eq!(whole["hz"], 250, "CONFIG_HZ of Debian's kernels");
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut capture = whole.clone();
        change(&mut capture);
        assert_ne!(capture, whole);
        errors(&capture)
    };
    let member = |at: &'static str, name: &'static str| {
        move |capture: &mut Value| {
            capture.pointer_mut(at).and_then(Value::as_object_mut).expect(at).remove(name);
        }
    };
    assert_ne!(changed(&member("", "registers")), [""; 0]);
    assert_ne!(changed(&member("/rq/0/cfs", "h_nr_queued")), [""; 0]);
    assert_ne!(changed(&member("/tasks/0", "runnable_age_ms")), [""; 0]);
    assert_ne!(changed(&member("/bpf/maps/0", "left_off")), [""; 0]);
    assert_ne!(changed(&|capture| capture["scx"]["more"] = json!(1)), [""; 0]);
    assert_ne!(changed(&|capture| capture["rq"][0]["nr_running"] = json!("0")), [""; 0]);
    assert_ne!(changed(&|capture| capture["tasks"][0]["at"] = json!(1)), [""; 0]);
    // Anything may be missing if it says why.
    let why = json!({"unreadable": "it was torn"});
    assert_eq!(changed(&|capture| capture["rq"][0]["nr_running"] = why.clone()), [""; 0]);
}
