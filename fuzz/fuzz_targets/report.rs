//! A `report.json`.
#![no_main]

use compressor_format::{REPORT_VERSION, Report};
use compressor_fuzz::{check_refusal, folder, in_proportion};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let folder = folder(&[("report.json", input)]);
    in_proportion(input.len(), || match Report::read(folder.path()) {
        Ok(report) => {
            assert_eq!(report.format_version, REPORT_VERSION);
            report.save(folder.path()).expect("what was read can be written");
            let again = Report::read(folder.path()).expect("what was written can be read");
            assert_eq!((again.stages.len(), again.checks.len()), (report.stages.len(), report.checks.len()));
        }
        Err(error) => check_refusal(&error, folder.path()),
    });
});
