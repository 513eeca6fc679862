//! Prints how the model inside continues token numbers: `embedded COUNT NUMBER…`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let numbers: Vec<u32> = std::env::args().skip(1).map(|number| number.parse()).collect::<Result<_, _>>()?;
    let (count, prompt) = numbers.split_first().ok_or("usage: embedded COUNT NUMBER…")?;
    let mut ids = vec![0; *count as usize];
    let generated = compressor_embedded::continue_ids(prompt, &mut ids)?;
    let shown: Vec<String> = ids[..generated].iter().map(u32::to_string).collect();
    println!("{}", shown.join(" "));
    Ok(())
}
