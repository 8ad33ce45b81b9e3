//! `tidegate profile`: files as common programs write them, against what `NumPy` says about their columns.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::Value;
use tidegate::drift::{Bins, Derivation, Feature, Profile};

use crate::{
    cli::tidegate,
    repository::{Repository, SAMPLES},
    server::Launch,
};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data");

fn data(file: &str) -> String {
    PathBuf::from(DATA).join(file).display().to_string()
}

/// A folder for what is read and written.
struct Aside(tempfile::TempDir);

impl Aside {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn file(&self, name: &str, content: &str) -> String {
        fs::write(self.0.path().join(name), content).unwrap();
        self.path(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let output = self.path("profile.json");
        tidegate(&[&["profile", "--output", &output], arguments].concat(), "")
    }

    #[track_caller]
    fn profile(&self, arguments: &[&str]) -> Profile {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        Profile::read(&fs::read(self.path("profile.json")).unwrap()).unwrap()
    }

    /// The message of a command that fails, whose words are asked for.
    #[track_caller]
    fn refused(&self, arguments: &[&str], words: &[&str]) {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        for word in words {
            assert!(text.contains(word), "no `{word}` in: {text}");
        }
        assert!(!Path::new(&self.path("profile.json")).exists());
    }
}

fn names(profile: &Profile) -> Vec<&str> {
    profile.features.iter().map(|feature| feature.name.as_str()).collect()
}

fn lines(rows: u32, line: impl Fn(u32) -> String) -> String {
    (0..rows).map(line).collect()
}

fn edges(feature: &Feature) -> &[f64] {
    let Bins::Numeric { edges } = &feature.bins else { panic!("{feature:?}") };
    edges
}

#[test]
fn bins_masses_and_moments_are_those_of_numpy() {
    let expected: Value =
        serde_json::from_slice(&fs::read(data("profiles.json")).unwrap()).unwrap();
    let check = |file: &str, more: &[&str]| {
        let profile = Aside::new().profile(&[&[data(file).as_str()], more].concat());
        let expected = expected[file].as_array().unwrap();
        assert_eq!(profile.features.len(), expected.len(), "{file}");
        for (feature, expected) in profile.features.iter().zip(expected) {
            let numbers = |key: &str| -> Vec<f64> {
                expected[key].as_array().unwrap().iter().map(|own| own.as_f64().unwrap()).collect()
            };
            assert_eq!(edges(feature), numbers("edges"), "{file}: {}", feature.name);
            let counts: Vec<f64> =
                feature.counts.iter().map(|own| f64::from(u32::try_from(*own).unwrap())).collect();
            assert_eq!(counts, numbers("counts"), "{file}: {}", feature.name);
            let moments = feature.moments.unwrap();
            for (own, key) in [(moments.mean, "mean"), (moments.sd, "sd")] {
                let wanted = expected[key].as_f64().unwrap();
                let scale = moments.sd.max(moments.mean.abs());
                assert!((own - wanted).abs() <= 1e-12 * scale, "{file}: {own}, not {wanted}");
            }
        }
        profile
    };
    let iris = check("iris.csv", &["--label", "species"]);
    assert_eq!(names(&iris), ["sepal_length", "sepal_width", "petal_length", "petal_width"]);
    assert_eq!(
        (iris.rows, iris.source.as_str(), iris.features[0].sample.len()),
        (45, "iris.csv", 45)
    );
    check("breast_cancer.parquet", &["--label", "label", "--exclude", "id"]);
    check("long.parquet", &["--exclude", "word"]);
    check("table_polars.parquet", &["--columns", "unsigned,small,single"]);
    // Pictures, whose columns are named by the input that they are.
    let image = check("digits.npy", &["--sample-rows", "50", "--input", "image"]);
    assert_eq!((names(&image)[0], names(&image)[63]), ("image[0]", "image[63]"));
    assert!(image.features.iter().all(|feature| feature.sample.len() == 50));
}

#[test]
fn the_digest_is_that_of_the_file() {
    let profile = Aside::new().profile(&[&data("iris.csv"), "--label", "species"]);
    let digest = tidegate::source::Digest::of(&fs::read(data("iris.csv")).unwrap());
    assert_eq!(profile.digest, digest.to_string());
}

#[test]
fn every_kind_of_column_becomes_a_feature() {
    for file in
        ["table.csv", "table_polars.parquet", "table_pandas.parquet", "table_duckdb.parquet"]
    {
        let profile = Aside::new().profile(&[&data(file), "--exclude", "large"]);
        let kind = |name: &str| &profile.feature(name).unwrap_or_else(|| panic!("{name}")).bins;
        let categories = |name: &str| {
            let Bins::Categorical { categories, .. } = kind(name) else { panic!("{name}") };
            categories.join(" ")
        };
        assert_eq!(
            (categories("truth").as_str(), categories("category").as_str()),
            ("1 0", "red blue")
        );
        assert_eq!(profile.feature("category").unwrap().counts, [3, 2, 0, 0, 1]);
        // Infinities are counted, and so is what is missing.
        assert_eq!(profile.feature("double").unwrap().counts[5..], [0, 1, 1], "{file}");
        // All texts differ, one is longer than a category may be; the empty one is missing.
        assert!(
            matches!(&profile.derived[..], [Derivation::Text { input, .. }] if input == "text")
        );
        assert_eq!(profile.feature("text.length").unwrap().counts.last(), Some(&2), "{file}");
    }
}

#[test]
fn numbers_are_categories_where_that_is_said() {
    let aside = Aside::new();
    let rows = lines(60, |i| format!("0{},{},{}.0\n", i % 3, i % 4, i % 2));
    let file = aside.file("codes.csv", &format!("zip,plan,half\n{rows}"));
    let plain = aside.profile(&[&file]);
    assert_eq!(edges(&plain.features[1]), [0.0, 1.0, 2.0, 2.5, 3.0]);
    assert_eq!(plain.features[1].counts, [0, 15, 15, 15, 15, 0, 0, 0]);
    let flags = ["zip", "plan", "half"].map(|name| format!("--categorical={name}"));
    let told = aside.profile(&[&file, &flags[0], &flags[1], &flags[2]]);
    let bins = |categories: &[&str]| Bins::Categorical {
        categories: categories.iter().map(ToString::to_string).collect(),
        others: Vec::new(),
    };
    // A zero in front belongs to a code, and a model that takes numbers gets 1 where the file has 1.0.
    let found: Vec<_> = told.features.iter().map(|feature| feature.bins.clone()).collect();
    assert_eq!(found, [bins(&["00", "01", "02"]), bins(&["0", "1", "2", "3"]), bins(&["0", "1"])]);
}

#[test]
fn wide_inputs_are_watched_by_what_is_derived_from_them() {
    let profile = Aside::new().profile(&[&data("digits.npy"), "--wide", "image"]);
    let measures = ["mean", "sd", "min", "max", "zeros"].map(|measure| format!("image.{measure}"));
    assert_eq!(names(&profile), measures);
    assert!(profile.features.iter().all(|feature| feature.rows() == 200));
    assert_eq!(edges(&profile.features[2]), [0.0], "every picture has an empty place");
    let aside = Aside::new();
    let head: Vec<String> = (0..300).map(|i| format!("c{i}")).collect();
    let row: Vec<String> = (0..300).map(|i| (i % 10).to_string()).collect();
    let file = aside.file("wide.csv", &format!("{}\n{}\n", head.join(","), row.join(",")));
    let all = aside.profile(&[&file]);
    assert_eq!(names(&all)[0], "input.mean");
    let some = aside.profile(&[&file, "--wide", "left=c0..c99", "--columns", "c0,c1,c2,c200"]);
    assert_eq!(names(&some)[4..], ["left.zeros", "c200"]);
    assert_eq!(edges(&some.features[0]), [1.0]);
}

#[test]
fn embeddings_are_watched_by_clusters_and_length() {
    let aside = Aside::new();
    let line = |i: u32| format!("{},{},{i}\n", i % 2 * 10, f64::from(i % 7) / 10.0);
    let file = aside.file("e.csv", &format!("x,y,age\n{}", lines(200, line)));
    let profile = aside.profile(&[&file, "--embedding", "e=x..y"]);
    assert_eq!(names(&profile), ["e.cluster", "e.norm", "age"]);
    let [Derivation::Clusters { input, centres }] = &profile.derived[..] else { panic!("one") };
    assert_eq!((input.as_str(), centres.len()), ("e", 4));
    let cluster = &profile.features[0];
    assert_eq!((cluster.rows(), &cluster.counts[4..]), (200, &[0, 0, 0][..]));
    assert!(cluster.counts[..4].iter().all(|count| *count > 0), "{cluster:?}");
    let digits = aside.profile(&[&data("digits.npy"), "--embedding", "image"]);
    assert_eq!(names(&digits), ["image.cluster", "image.norm"]);
}

#[test]
fn files_in_any_split_give_the_same_profile() {
    let aside = Aside::new();
    let line =
        |i: u32| format!("{},{},text {}\n", f64::from(i * 7919 % 1000) / 8.0, i % 5, i * 31 % 900);
    let file = |name: &str, rows: std::ops::Range<u32>| {
        aside.file(name, &format!("a,b,c\n{}", rows.map(line).collect::<String>()))
    };
    let whole = aside.profile(&[&file("whole.csv", 0..3000)]);
    for cuts in [[1, 2], [700, 701], [1500, 2999]] {
        let parts = [
            file("1.csv", 0..cuts[0]),
            file("2.csv", cuts[0]..cuts[1]),
            file("3.csv", cuts[1]..3000),
        ];
        let split = aside.profile(&[&parts[0], &parts[1], &parts[2]]);
        assert_eq!((&split.features, &split.derived), (&whole.features, &whole.derived));
    }
}

#[test]
fn mistakes_are_told_with_their_place_and_a_way_out() {
    let aside = Aside::new();
    let mixed = aside.file("mixed.csv", "age,name\n1,a\n2,b\n3,c\n?,d\n");
    aside.refused(&[&mixed], &["has `?` in row 4, column `age`", "--categorical 'age'"]);
    let late = lines(20_000, |i| format!("{i}\n"));
    let late = aside.file("late.csv", &format!("age\n{late}n. a.\n"));
    aside.refused(&[&late], &["`n. a.` in row 20001, column `age`", "as in the rows before"]);
    aside.refused(&[&mixed, "--label", "nmae"], &["no column `nmae` (did you mean `name`?)"]);
    aside.refused(&[&aside.file("none.csv", "a,b\n")], &["have no rows"]);
    aside.refused(&[&mixed, &late], &["other columns than"]);
    aside.refused(&[&mixed, "--wide", "x=name..age"], &["names no columns"]);
    aside.refused(&[&mixed, "--wide", "x=name"], &["NAME=FIRST..LAST"]);
    aside
        .refused(&[&mixed, "--columns", "name", "--categorical", "age"], &["cannot be categories"]);
    let names = lines(5000, |i| format!("n{i}\n"));
    let names = aside.file("names.csv", &format!("name\n{names}"));
    aside.refused(&[&names, "--categorical", "name"], &["more than 4126 categories"]);
    aside.refused(&[&data("kinds_duckdb.parquet")], &["`vector`"]);
}

#[test]
fn people_get_a_table_and_machines_json() {
    let aside = Aside::new();
    let iris = data("iris.csv");
    let output = aside.run(&[&iris, "--label", "species"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("sepal_length") && text.contains("45 rows are few"), "{text}");
    assert!(text.lines().take(6).all(|line| line.chars().count() <= 80), "{text}");
    let output = aside.run(&[&iris, "--label", "species", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["features"][3]["name"], "petal_width");
    assert_eq!(report["features"][3]["max"], 2.5);
    let output = aside.run(&[&iris, "--contract", "iris"]);
    let contract: toml::Table = toml::from_str(&String::from_utf8(output.stdout).unwrap()).unwrap();
    let features = &contract["models"]["iris"]["contract"]["features"];
    assert_eq!(features["petal_width"]["max"].as_float(), Some(2.5));
    assert_eq!(features["species"]["categories"].as_array().unwrap().len(), 3);
    // It is a configuration as it stands.
    let file = aside.file("tidegate.toml", &toml::to_string(&contract).unwrap());
    fs::create_dir(aside.path("models")).unwrap();
    let checked =
        tidegate(&["check", "--config", &file, "--repository", &aside.path("models")], "");
    assert_ne!(checked.status.code(), Some(2), "{checked:?}");
}

#[test]
fn a_profile_is_checked_against_the_version_and_put_beside_it() {
    let repository = Repository::of(&["iris", "digits", "sentiment"]);
    let folder = repository.path().display().to_string();
    let profile = |arguments: &[&str]| {
        tidegate(&[&["profile", "--repository", &folder], arguments].concat(), "")
    };
    let beside = |version: &str| repository.path().join(version).join("profile.json");
    let iris = data("iris.csv");
    let refused = profile(&["--model", "iris", &iris]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8(refused.stderr).unwrap();
    for word in ["version 1 of iris", "takes 4 values a row in `input`", "leave out `species`"] {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    assert!(!beside("iris/1").exists());
    let written = profile(&["--model", "iris", &iris, "--label", "species", "--json"]);
    assert_eq!(written.status.code(), Some(0), "{written:?}");
    let report: Value = serde_json::from_slice(&written.stdout).unwrap();
    assert_eq!(report["profile"], beside("iris/1").display().to_string());
    let notes = report["notes"].to_string();
    assert!(notes.contains("`input` is compared with the columns `sepal_length`"), "{notes}");
    // Pictures that are summed up although they have few numbers.
    let digits = data("digits.npy");
    for more in [&["--wide", "digits"][..], &["--embedding", "image"], &[]] {
        let arguments = [&["--model", "digits", "--version", "1", &digits], more].concat();
        assert_eq!(profile(&arguments).status.code(), Some(0), "{more:?}");
        let server = Launch::of(&repository).start();
        let report = server.admin("/api/v1/models/digits/drift").ok().json();
        assert_eq!(report["reference"]["kind"], "profile", "{more:?}: {report}");
        assert_eq!(report["reference"]["rows"], 200);
    }
    let checked = tidegate(&["check", "--repository", &folder], "");
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    assert!(!String::from_utf8_lossy(&checked.stdout).contains("not used"), "{checked:?}");
    fs::copy(beside("iris/1"), beside("sentiment/1")).unwrap();
    let checked = tidegate(&["check", "--repository", &folder, "--json"], "");
    let text = String::from_utf8_lossy(&checked.stdout);
    assert!(text.contains("profile.json is not used"), "{text}");
    for (arguments, word) in [
        (["--model", "irs", "--version", "1"], "no model `irs`"),
        (["--model", "iris", "--version", "7"], "no version `7`"),
    ] {
        let wrong = profile(&[&arguments[..], &[&iris]].concat());
        assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
        assert!(String::from_utf8_lossy(&wrong.stderr).contains(word), "{wrong:?}");
    }
}

#[test]
fn sample_models_have_the_profiles_of_their_training_rows() {
    let read = |version: &str| {
        let path = Path::new(SAMPLES).join(version).join("profile.json");
        Profile::read(&fs::read(&path).unwrap())
            .unwrap_or_else(|wrong| panic!("{version}: {wrong}"))
    };
    let check = |version: &str, rows: u64, columns: &[&str], features: usize| {
        let profile = read(version);
        assert_eq!((profile.rows, profile.features.len()), (rows, features), "{version}");
        assert_eq!(&names(&profile)[..columns.len()], columns, "{version}");
        for feature in &profile.features {
            assert_eq!(feature.rows(), rows, "{version}: {}", feature.name);
            assert!(!feature.is_unmonitorable() && feature.sample.len() <= 500, "{version}");
        }
        profile
    };
    check("iris/1", 105, &["sepal_length", "sepal_width", "petal_length", "petal_width"], 4);
    let first = check("breast_cancer/1", 398, &["mean_radius", "mean_texture"], 30);
    assert_eq!(first, read("breast_cancer/2"), "both versions were trained on the same rows");
    check("digits/1", 1347, &["image[0]", "image[1]"], 64);
    let sentiment = check("sentiment/1", 12_928, &["text.length", "text.known"], 2);
    assert!(matches!(&sentiment.derived[..], [Derivation::Text { input, .. }] if input == "text"));
}

/// The largest resident memory of a command, in MiB.
fn peak_memory(arguments: &[&str]) -> u64 {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(arguments)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = kib.unwrap_or(0).max(peak);
        std::thread::yield_now();
    }
    assert!(child.wait().unwrap().success());
    peak / 1024
}

#[test]
fn memory_does_not_grow_with_the_file() {
    let aside = Aside::new();
    let measure = |name: &str, rows: u32| {
        let mut file = std::io::BufWriter::new(fs::File::create(aside.path(name)).unwrap());
        writeln!(file, "a,b,c,d,e,f,g,h,text").unwrap();
        for row in 0..rows {
            let mixed = row.wrapping_mul(2_654_435_761);
            for shift in 0..8 {
                write!(file, "{},", mixed >> shift).unwrap();
            }
            // No more distinct ones than tables have room for: those are filled row by row, up to a maximum.
            writeln!(file, "some words and {}", mixed % 50).unwrap();
        }
        file.flush().unwrap();
        let output = aside.path("profile.json");
        let bytes = fs::metadata(aside.path(name)).unwrap().len();
        (peak_memory(&["profile", &aside.path(name), "--output", &output]), bytes >> 20)
    };
    let (small, large) = (measure("small.csv", 70_000), measure("large.csv", 400_000));
    let more = large.0.saturating_sub(small.0);
    assert!(more < (large.1 - small.1) / 2, "MiB of memory and of the file: {small:?}, {large:?}");
}
