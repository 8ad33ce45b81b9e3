//! Proof in a sandboxed process: what it proves, what it refuses, and that it leaves nothing behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tidegate::{
    app::SystemClock,
    engine::{ExternalFile, ModelFile},
    lifecycle::{Case, Code, Layer, Proof, ProofFailure, ProofLimits, Prover},
    model::{EngineChoice, ModelDescription},
};

use crate::{
    repository::{Repository, SAMPLES, source},
    server::{PATIENCE, eventually},
};

/// A prover that starts the real program.
pub(crate) fn prover(limits: ProofLimits) -> Prover {
    Prover::new(env!("CARGO_BIN_EXE_tidegate").into(), limits, None, Arc::new(SystemClock))
}

/// A model alone, as a case with one warm-up run.
pub(crate) fn prove(prover: &Prover, model: &[u8]) -> Result<Proof, ProofFailure> {
    prove_with(prover, model, &[], None)
}

/// A model with what lies beside it.
pub(crate) fn prove_with(
    prover: &Prover,
    model: &[u8],
    external: &[(&str, &[u8])],
    golden: Option<&[u8]>,
) -> Result<Proof, ProofFailure> {
    let external = external.iter().map(|(name, bytes)| ExternalFile {
        location: (*name).to_owned(),
        bytes: Bytes::copy_from_slice(bytes),
        file: None,
    });
    let file = ModelFile {
        bytes: Bytes::copy_from_slice(model),
        external: external.collect(),
        summary: std::sync::Arc::default(),
        packed: tidegate::engine::Packed::default(),
    };
    prover.prove(&Case {
        identity: None,
        anew: false,
        file: &file,
        golden,
        description: &ModelDescription::default(),
        engine: EngineChoice::OnnxRuntime,
        intra_op_threads: 1,
        warmup_runs: 1,
    })
}

fn hostile(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hostile/models");
    fs::read(Path::new(folder).join(name).with_extension("onnx")).unwrap()
}

fn short(time_max: Duration) -> ProofLimits {
    ProofLimits { time_max, ..ProofLimits::default() }
}

/// Whether the kernel has a layer, found out without the code that applies it.
fn kernel_has(layer: &str) -> bool {
    match layer {
        // Which modules are on, where that is told; else whether the kernel was built with it.
        "landlock" => fs::read_to_string("/sys/kernel/security/lsm").map_or_else(
            |_| {
                let symbols = fs::read("/proc/kallsyms").unwrap_or_default();
                String::from_utf8_lossy(&symbols).contains("sys_landlock_create_ruleset")
            },
            |modules| modules.split(',').any(|module| module.trim() == "landlock"),
        ),
        _ => Path::new("/proc/sys/kernel/seccomp/actions_avail").is_file(),
    }
}

#[test]
fn samples_are_proven_with_their_golden_outputs() {
    let prover = prover(ProofLimits::default());
    for name in ["iris", "digits", "breast_cancer", "sentiment"] {
        let golden = fs::read(Path::new(SAMPLES).join(name).join("1/golden.json")).unwrap();
        let model = fs::read(source(name, "1")).unwrap();
        let proof = prove_with(&prover, &model, &[], Some(&golden))
            .unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert_eq!(proof.engine, "onnxruntime");
        assert!(!proof.signature.inputs.is_empty() && !proof.signature.outputs.is_empty());
        assert!(proof.run.is_some() && proof.load > Duration::ZERO, "{proof:?}");
        assert!(proof.memory_peak.is_some_and(|bytes| bytes > 1 << 20), "{proof:?}");
        let wrong = String::from_utf8(golden).unwrap().replacen("\"data\":[", "\"data\":[7,", 1);
        let failure = prove_with(&prover, &model, &[], Some(wrong.as_bytes())).unwrap_err();
        assert_eq!(failure.code, Code::Golden, "{name}: {failure}");
    }
}

#[test]
fn the_sandbox_refuses_every_attempt_to_break_out() {
    let limits = ProofLimits { memory_max: 1 << 30, ..ProofLimits::default() };
    let (sandbox, attempts) = prover(limits).self_test().unwrap();
    assert_eq!(sandbox.rlimits, Layer::Applied);
    let (files, calls) = (kernel_has("landlock"), kernel_has("seccomp"));
    // Whatever the kernel has must hold: a layer that is off would make this test pass elsewhere only.
    assert_eq!(sandbox.landlock == Layer::Applied, files, "{sandbox:?}");
    assert_eq!(sandbox.seccomp == Layer::Applied, calls, "{sandbox:?}");
    assert!(attempts.len() >= 18, "{attempts:?}");
    for attempt in attempts {
        let expected = match attempt.what.as_str() {
            "read a file" | "list a folder" | "read a variable" if files => "os error 13",
            "read a file" | "list a folder" | "read a variable" => continue,
            "take too much memory" => "memory",
            _ if calls => "os error 1)",
            _ => continue,
        };
        let refusal = attempt.refusal.as_deref().unwrap_or("it was not refused");
        assert!(refusal.contains(expected), "{}: {refusal}, not {expected}", attempt.what);
    }
}

#[test]
fn a_model_that_hangs_is_ended_at_the_deadline_and_leaves_nothing() {
    let model = hostile_loop();
    let time_max = Duration::from_millis(400);
    let mut late = Vec::new();
    let prover = prover(short(time_max));
    let (files, threads) = (count("fd"), count("task"));
    for round in 0..20 {
        let begin = Instant::now();
        let failure = prove(&prover, &model).unwrap_err();
        late.push(begin.elapsed().saturating_sub(time_max));
        assert_eq!(failure.code, Code::Timeout, "round {round}: {failure}");
        assert!(failure.to_string().contains("proof failed (timeout)"), "{failure}");
        assert_eq!(children(), Vec::<PathBuf>::new(), "round {round}: a process is left");
    }
    // On a busy machine a process of low priority may take a while to go.
    late.sort();
    assert!(late[late.len() / 2] <= Duration::from_millis(500), "{late:?}");
    assert_eq!((count("fd"), count("task")), (files, threads), "files or threads are left");
}

#[test]
fn a_model_that_takes_memory_is_refused_within_its_limit() {
    const LIMIT: u64 = 256 << 20;
    let prover = prover(ProofLimits { memory_max: LIMIT, ..short(Duration::from_secs(20)) });
    let peak = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicU64::new(0));
    let watcher = {
        let (peak, done) = (Arc::clone(&peak), Arc::clone(&done));
        thread::spawn(move || {
            while done.load(Ordering::Relaxed) == 0 {
                let most = copies().iter().filter_map(|copy| resident_peak(copy)).max();
                peak.fetch_max(most.unwrap_or(0), Ordering::Relaxed);
                thread::park_timeout(Duration::from_millis(2));
            }
        })
    };
    // A copy is refused its memory and gone within milliseconds: again, until one was seen.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let failure = prove(&prover, &hostile("memory_bomb")).unwrap_err();
        assert_eq!(failure.code, Code::Memory, "{failure}");
        if peak.load(Ordering::Relaxed) > 0 || Instant::now() > deadline {
            break;
        }
    }
    done.store(1, Ordering::Relaxed);
    watcher.join().unwrap();
    let peak = peak.load(Ordering::Relaxed);
    // The program and the engine's library come on top.
    assert!(peak > 0 && peak < LIMIT + (200 << 20), "{peak} bytes were resident");
}

#[test]
fn a_process_that_cannot_start_or_speaks_otherwise_is_a_refusal() {
    let model = fs::read(source("add_sub", "1")).unwrap();
    let ask = |program: &str| {
        let limits = short(Duration::from_secs(5));
        let prover = Prover::new(program.into(), limits, None, Arc::new(SystemClock));
        prove(&prover, &model).unwrap_err()
    };
    let failure = ask("/nowhere/tidegate");
    assert_eq!(failure.code, Code::Start);
    assert!(failure.reason.contains("proof.enabled = false"), "{failure}");
    assert_eq!(ask("/bin/false").code, Code::Crashed);
    // It writes whatever its argument says for ever, and reads nothing.
    let failure = ask("/usr/bin/yes");
    assert_eq!(failure.code, Code::Crashed, "{failure}");
    assert!(failure.reason.contains("one build"), "{failure}");
}

#[test]
fn a_request_larger_than_pipes_does_not_block_on_a_process_that_reads_nothing() {
    let weights = vec![0u8; 8 << 20];
    let prover = Prover::new(
        "/bin/false".into(),
        short(Duration::from_secs(5)),
        None,
        Arc::new(SystemClock),
    );
    let begin = Instant::now();
    let failure = prove_with(&prover, b"x", &[("weights.bin", &weights)], None).unwrap_err();
    assert_eq!(failure.code, Code::Crashed, "{failure}");
    assert!(begin.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_proof_ends_with_the_process_that_asked_for_it() {
    let repository = Repository::empty();
    repository.add_bytes("endless", "1", &hostile_loop());
    let mut asker = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["check", "--repository"])
        .arg(repository.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let child = eventually("the process that proves is closed in", || {
        let child = copies_of(asker.id()).pop()?;
        let status = fs::read_to_string(child.join("status")).ok()?;
        let filtered = status.lines().any(|line| line == "Seccomp:\t2");
        (filtered || !kernel_has("seccomp")).then_some(child)
    });
    asker.kill().unwrap();
    asker.wait().unwrap();
    eventually("it has ended, too", || {
        let status = fs::read_to_string(child.join("status")).ok();
        status.is_none_or(|status| status.contains("State:\tZ")).then_some(())
    });
}

#[test]
fn a_template_proves_version_after_version_and_is_replaced_when_it_died() {
    let model = fs::read(crate::repository::source("breast_cancer", "2")).unwrap();
    let lethal = crate::blame::lstm_of_numbers_below(0.5);
    let prover = prover(ProofLimits { memory_max: 512 << 20, ..short(Duration::from_secs(20)) });
    prover.make_ready();
    let waits = children();
    assert_eq!(waits.len(), 1);
    prover.make_ready();
    assert_eq!(children(), waits, "one is enough");
    for round in 0..3 {
        let failure = prove(&prover, &lethal).unwrap_err();
        assert_eq!(failure.code, Code::Crashed, "round {round}: {failure}");
        let failure = prove(&prover, &hostile("memory_bomb")).unwrap_err();
        assert_eq!(failure.code, Code::Memory, "round {round}: {failure}");
        // What one of them did is nothing to the next.
        let proof = prove(&prover, &model).unwrap();
        assert!(proof.memory_peak.is_some_and(|peak| peak < 200 << 20), "{proof:?}");
        assert_eq!((children(), copies()), (waits.clone(), Vec::new()), "it waits again, alone");
    }
    prover.make_ready();
    let [spare] = children().try_into().unwrap();
    let killed = Command::new("kill").arg("-9").arg(spare.file_name().unwrap()).status().unwrap();
    assert!(killed.success());
    eventually("it has ended", || {
        let status = fs::read_to_string(spare.join("status")).unwrap();
        status.contains("State:\tZ").then_some(())
    });
    let proof = prove(&prover, &model);
    assert!(proof.is_ok(), "{proof:?}");
    prover.make_ready();
    drop(prover);
    assert_eq!(children(), Vec::<PathBuf>::new(), "none outlives who made it");
}

fn hostile_loop() -> Vec<u8> {
    crate::models::endless_loop()
}

/// Entries of a folder of `/proc/self`.
fn count(folder: &str) -> usize {
    fs::read_dir(Path::new("/proc/self").join(folder)).unwrap().count()
}

/// The processes that this one has started and not reaped.
pub(crate) fn children() -> Vec<PathBuf> {
    children_of(std::process::id())
}

/// The copies that prove versions for this process.
fn copies() -> Vec<PathBuf> {
    copies_of(std::process::id())
}

fn copies_of(process: u32) -> Vec<PathBuf> {
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse().ok();
    children_of(process).iter().filter_map(number).flat_map(children_of).collect()
}

fn children_of(process: u32) -> Vec<PathBuf> {
    let own = format!("PPid:\t{process}");
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok).map(|entry| entry.path());
    let mine = |path: &PathBuf| {
        fs::read_to_string(path.join("status"))
            .is_ok_and(|status| status.lines().any(|line| line == own))
    };
    entries.filter(mine).collect()
}

fn resident_peak(process: &Path) -> Option<u64> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
