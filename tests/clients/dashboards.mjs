// Checks dashboards against Grafana's own types, with the TypeScript compiler.
//
//     node dashboards.mjs MODULES FOLDER DASHBOARD...
//
// MODULES is the folder of npm's packages @grafana/schema and typescript; FOLDER takes what is compiled. That the check
// finds mistakes is checked first, with broken copies. JSON has words where the types have enumerations, and Grafana's
// source of Prometheus data adds fields that its schema leaves open.

import { execFileSync } from "node:child_process";
import { readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [modules, folder, ...files] = process.argv.slice(2);

const TYPES = `import type { AnnotationQuery, Dashboard, DataQuery, VariableModel } from "@grafana/schema";
type Written<T> = { [K in keyof T]: Json<T[K]> };
type Json<T> = unknown extends T ? T
  : T extends string ? \`\${T}\`
  : T extends number | boolean | null | undefined ? T
  : T extends AnnotationQuery ? Written<T> & { titleFormat?: string }
  : T extends VariableModel ? Written<T> & { definition?: string }
  : T extends DataQuery ? Written<T> & { expr: string }
  : T extends (infer U)[] ? Json<U>[]
  : Written<T>;
`;

/** The source that assigns each dashboard, and what its panels are told, to their types. */
function source(dashboards) {
  const kinds = new Set();
  const lines = [];
  for (const dashboard of dashboards) {
    lines.push(`export const dashboard${lines.length}: Json<Dashboard> = ${JSON.stringify(dashboard)};`);
    for (const panel of dashboard.panels.filter((panel) => panel.type !== "row")) {
      const custom = panel.fieldConfig?.defaults?.custom ?? {};
      const hasFields = ["timeseries", "heatmap"].includes(panel.type);
      kinds.add(panel.type);
      lines.push(`export const options${lines.length}: Json<Partial<${panel.type}.Options>> = ${JSON.stringify(panel.options)};`);
      if (hasFields) {
        lines.push(`export const fields${lines.length}: Json<Partial<${panel.type}.FieldConfig>> = ${JSON.stringify(custom)};`);
      }
    }
  }
  const from = (kind) => `./node_modules/@grafana/schema/dist/types/raw/composable/${kind}/panelcfg/x/types.gen`;
  const imports = [...kinds].map((kind) => `import type * as ${kind} from "${from(kind)}";`);
  return [TYPES, ...imports, ...lines, ""].join("\n");
}

/** What the compiler finds wrong with these dashboards. */
function mistakes(dashboards) {
  writeFileSync(join(folder, "dashboards.ts"), source(dashboards));
  const options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--moduleResolution", "nodenext"];
  const compiler = join(folder, "node_modules", "typescript", "bin", "tsc");
  try {
    execFileSync(process.execPath, [compiler, ...options, "dashboards.ts"], { cwd: folder, encoding: "utf8" });
    return "";
  } catch (error) {
    return error.stdout || String(error);
  }
}

symlinkSync(modules, join(folder, "node_modules"));
const dashboards = files.map((file) => JSON.parse(readFileSync(file, "utf8")));
const broken = [
  (dashboard, panel) => (panel.fieldConfig.defaults.thresholds.mode = "relative"),
  (dashboard, panel) => (panel.gridPos.w = "12"),
  (dashboard, panel) => (panel.repeatDirection = "x"),
  (dashboard, panel) => (panel.options.legend = { displayMode: "tables", placement: "bottom" }),
  (dashboard, panel) => (panel.titel = "misspelt"),
  (dashboard) => (dashboard.templating.list[0].hide = "never"),
  (dashboard) => (dashboard.annotations.list[0].enabled = true),
];
for (const [number, change] of broken.entries()) {
  const copy = structuredClone(dashboards[0]);
  change(copy, copy.panels.find((panel) => panel.type === "timeseries"));
  if (!mistakes([copy])) {
    throw new Error(`mistake ${number} is not found`);
  }
}
const found = mistakes(dashboards);
if (found) {
  console.error(found);
  process.exit(1);
}
