// Prints how the model inside a WebAssembly module continues token numbers: node browser.mjs MODULE COUNT NUMBER…
import { readFile } from "node:fs/promises";

const [module, count, ...prompt] = process.argv.slice(2);
const { instance } = await WebAssembly.instantiate(await readFile(module));
const { push, continue_ids, id } = instance.exports;
prompt.forEach((number) => push(Number(number)));
const generated = continue_ids(Number(count));
if (generated < 0) throw new Error("the prompt was refused");
console.log(Array.from({ length: generated }, (_, index) => id(index)).join(" "));
