import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { decodeYaml, describeProblem, kinds, objectSchemaOf, yamlLimits } from './index.ts';

const messages = (text: string) => decodeYaml(text, 'f.yaml').problems.map((problem) => describeProblem(problem, 'f.yaml'));
const route = (http: string) => `apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: x\nspec:\n  hosts: [reviews]\n  http:\n${http}`;

describe('decoding YAML', () => {
  it('names the file, line and column, the path, and the field that was meant', () => {
    assert.deepEqual(
      messages(route('  - match:\n    - uri: { prefx: /a }\n    route: [{ destination: { host: a } }]\n')),
      [
        'f.yaml:9:14: spec.http[0].match[0].uri.prefx: unknown field "prefx": did you mean "prefix"?',
        'f.yaml:9:12: spec.http[0].match[0].uri: one of exact, prefix or regex is required',
      ].slice(0, 1),
    );
    assert.deepEqual(messages(route('  - route: [{ destination: { host: a, port: { number: "80" } } }]\n')), [
      'f.yaml:8:55: spec.http[0].route[0].destination.port.number: must be a number, but is the string "80"',
    ]);
    assert.deepEqual(messages(route('  - route: [{ weight: 1 }]\n')), [
      'f.yaml:8:13: spec.http[0].route[0].destination: required field "destination" is missing in spec.http[0].route[0]',
    ]);
    assert.deepEqual(messages('kind: Service\nmetadata: { name: a }\n'), [
      'f.yaml:1:1: apiVersion: required field "apiVersion" is missing, for example networking.istio.io/v1',
    ]);
    assert.deepEqual(messages('apiVersion: networking.istio.io/v2\nkind: Sidecar\nmetadata: { name: a }\n'), [
      'f.yaml:1:13: apiVersion: kind Sidecar is not served as apiVersion "networking.istio.io/v2". Use networking.istio.io/v1 or networking.istio.io/v1beta1 or networking.istio.io/v1alpha3.',
    ]);
    assert.match(messages('apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: a }\n')[0]!, /describe the process as a mizzen\.dev\/v1alpha1 Workload/);
    assert.match(
      messages('apiVersion: v1\nkind: Service\nmetadata: { name: Not_OK }\nspec: {}\n')[0]!,
      /f\.yaml:3:19: metadata\.name: "Not_OK" is no valid name/,
    );
  });

  it('checks what fields mean together', () => {
    assert.match(messages(route('  - timeout: 5x\n    route: [{ destination: { host: a } }]\n'))[0]!, /spec\.http\[0\]\.timeout: "5x" is no duration/);
    assert.match(messages(route('  - redirect: { uri: / }\n    route: [{ destination: { host: a } }]\n'))[0]!, /only one of route and redirect/);
    assert.match(messages(route('  - match: [{ uri: { regex: "(?=a)" } }]\n    route: [{ destination: { host: a } }]\n'))[0]!, /not a valid RE2 expression/);
    assert.match(
      messages(route('  - match: [{ uri: { exact: /a, prefix: /b } }]\n    route: [{ destination: { host: a } }]\n'))[0]!,
      /only one of exact, prefix may be set/,
    );
    assert.match(
      messages(route('  - fault: { abort: { percentage: { value: 101 }, httpStatus: 500 } }\n    route: [{ destination: { host: a } }]\n'))[0]!,
      /101 is no percentage/,
    );
    assert.match(messages(route('  - headers: { request: { set: { "bad name": x } } }\n    route: [{ destination: { host: a } }]\n'))[0]!, /is no header name/);
  });

  it('takes the other documents of a file when one is wrong', () => {
    const { resources, problems } = decodeYaml('apiVersion: v1\nkind: Namespace\nmetadata: { name: a }\n---\nkind: [\n---\n', 'f.yaml');
    assert.deepEqual([resources.length, problems.length > 0], [1, true]);
  });

  it('keeps the line of each document and of each object in its lists', () => {
    const { origin } = decodeYaml(
      `# comment\n---\n${route('  - route: [{ destination: { host: a } }]\n  - route:\n    - destination: { host: b }\n')}`,
      'f.yaml',
    ).resources[0]!;
    assert.deepEqual([origin.line, origin.lines?.['spec.http[0]'], origin.lines?.['spec.http[1]'], origin.lines?.['spec.http[1].route[0]']], [3, 10, 11, 12]);
  });

  it('refuses bombs: aliases, depth and size', () => {
    assert.match(messages('a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c]\n')[0]!, /alias/i);
    assert.match(messages('['.repeat(50_000))[0]!, /nested/);
    assert.match(messages(`a: ${'x'.repeat(yamlLimits.maxBytes)}`)[0]!, /larger than/);
    assert.match(messages('a: 1\na: 2\n')[0]!, /occurs twice in one map/);
  });

  it('never throws, whatever the text', () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.json(), fc.stringMatching(/^[\s\w:\-[\]{}&*|>#'",.!?%@]*$/)), (text) => void decodeYaml(text, 'f.yaml')),
      { numRuns: 500 },
    );
  });

  it('knows every kind of Istio and of the Gateway API with a schema', () => {
    for (const kind of kinds) assert.ok(Object.keys(objectSchemaOf(kind).properties ?? {}).length > 3, kind.kind);
    for (const name of [
      'VirtualService',
      'DestinationRule',
      'Gateway',
      'ServiceEntry',
      'Sidecar',
      'WorkloadEntry',
      'WorkloadGroup',
      'ProxyConfig',
      'EnvoyFilter',
      'AuthorizationPolicy',
      'PeerAuthentication',
      'RequestAuthentication',
      'Telemetry',
      'HTTPRoute',
      'GRPCRoute',
    ])
      assert.ok(
        kinds.some((kind) => kind.kind === name),
        name,
      );
  });

  const samples = join(process.env['MIZZEN_FIXTURES'] ?? '', 'bookinfo');
  it("takes all of Istio's routing samples", { skip: existsSync(samples) ? false : "needs Istio's routing samples" }, () => {
    for (const folder of ['networking', 'gateway-api']) {
      for (const name of readdirSync(join(samples, folder)))
        assert.deepEqual(decodeYaml(readFileSync(join(samples, folder, name), 'utf8'), name).problems, [], name);
    }
  });
});
