// Generates the TypeScript types of Envoy's v3 API (with Istio's certificate service, Dapr's runtime, OTLP and messages of our own) into packages/envoy-api/gen.
// The .proto files come from the npm package @grpc/grpc-js-xds; nothing generated is committed. Runs on any Node >= 20.
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { slimDescriptors } from './slim-descriptors.mjs';

const root = join(import.meta.dirname, '..');
const deps = join(root, 'node_modules/@grpc/grpc-js-xds/deps');
const out = join(root, 'packages/envoy-api/gen');

function protoFiles(directory) {
  return readdirSync(directory, { withFileTypes: true }).flatMap((entry) => {
    const path = join(directory, entry.name);
    return entry.isDirectory() ? protoFiles(path) : entry.name.endsWith('.proto') ? [path] : [];
  });
}

/** Copies the proto trees side by side, without what cannot be compiled: tests, the v2 API, and files whose imports are not shipped. */
function assembleSources(scratch) {
  for (const tree of ['envoy-api', 'googleapis', 'protoc-gen-validate', 'xds']) cpSync(join(deps, tree), scratch, { recursive: true });
  // Dapr's own API, of which the message mesh speaks a part.
  cpSync(join(root, 'node_modules/@dapr/dapr/proto/dapr'), join(scratch, 'dapr'), { recursive: true });
  cpSync(join(root, 'packages/envoy-api/proto'), scratch, { recursive: true });
  for (const folder of ['java', 'tests', 'google/protobuf']) rmSync(join(scratch, folder), { recursive: true, force: true });

  const validate = join(scratch, 'validate/validate.proto');
  const text = readFileSync(validate, 'utf8');
  if (!text.includes('ignore_empty = 26')) {
    // Envoy's files use StringRules.ignore_empty, which the shipped copy of validate.proto is too old to declare.
    writeFileSync(validate, text.replace(/(message StringRules \{)/, '$1\n    optional bool ignore_empty = 26;\n'));
  }

  const isOldVersion = (path) =>
    /\/v2(alpha\d*|beta\d*)?\//.test(path) || (/\/(v1|v1alpha1)\//.test(path.replace(/.*envoy\//, 'envoy/')) && path.includes('/envoy/type/'));
  let files = protoFiles(scratch).filter((path) => !isOldVersion(path));
  for (const path of protoFiles(scratch)) if (isOldVersion(path)) rmSync(path);
  // A file whose import is missing takes its importers with it, so repeat until nothing more falls out.
  for (;;) {
    const present = new Set(files.map((path) => relative(scratch, path)));
    const broken = files.filter((path) =>
      [...readFileSync(path, 'utf8').matchAll(/^import (?:public |weak )?"([^"]+)"/gm)].some(
        ([, name]) => !name.startsWith('google/protobuf/') && !present.has(name),
      ),
    );
    if (broken.length === 0) break;
    for (const path of broken) rmSync(path);
    files = files.filter((path) => !broken.includes(path));
  }
  // googleapis holds far more than Envoy imports: keep what is reachable.
  const reachable = new Set();
  const visit = (name) => {
    if (reachable.has(name) || !existsSync(join(scratch, name))) return;
    reachable.add(name);
    for (const [, next] of readFileSync(join(scratch, name), 'utf8').matchAll(/^import (?:public |weak )?"([^"]+)"/gm)) visit(next);
  };
  for (const path of files) {
    const name = relative(scratch, path);
    if (/^(envoy|xds|udpa|istio|mizzen|spiffe|opentelemetry|dapr\/proto\/runtime)\//.test(name)) visit(name);
  }
  for (const path of files) if (!reachable.has(relative(scratch, path))) rmSync(path);
  return reachable.size;
}

const scratch = mkdtempSync(join(tmpdir(), 'mizzen-protos-'));
try {
  const count = assembleSources(scratch);
  writeFileSync(join(scratch, 'buf.yaml'), 'version: v2\n');
  const plugin = join(root, 'node_modules/.bin/protoc-gen-es');
  writeFileSync(
    join(scratch, 'buf.gen.yaml'),
    JSON.stringify({ version: 'v2', plugins: [{ local: plugin, out: 'gen', strategy: 'all', opt: ['target=js+dts', 'import_extension=js'] }] }),
  );
  execFileSync(join(root, 'node_modules/.bin/buf'), ['generate', '--template', 'buf.gen.yaml'], { cwd: scratch, stdio: ['ignore', 'inherit', 'inherit'] });
  slimDescriptors(join(scratch, 'gen'));
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  cpSync(join(scratch, 'gen'), out, { recursive: true });
  if (!statSync(join(out, 'envoy/config/listener/v3/listener_pb.js')).isFile()) throw new Error('the generator wrote no listener types');
  console.log(`generated the types of ${count} proto files`);
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
