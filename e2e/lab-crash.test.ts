import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { until } from './support/http.ts';
import { mizzen, notPrivileged, program } from './support/lab.ts';
import { skipWithout } from './support/requirements.ts';

const yaml = `apiVersion: v1
kind: Service
metadata: { name: web }
spec: { selector: { app: web }, ports: [{ name: http, port: 80, targetPort: 8000 }] }
---
apiVersion: mizzen.dev/v1alpha1
kind: Workload
metadata: { name: web, labels: { app: web } }
spec: { command: [python3, -m, http.server, "8000"], ports: [{ name: http, port: 8000 }] }
---
apiVersion: mizzen.dev/v1alpha1
kind: Workload
metadata: { name: client, labels: { app: client }, annotations: { traffic.sidecar.istio.io/excludeOutboundPorts: "8000" } }
spec: { command: [sleep, infinity] }
`;

describe('mizzen up --isolate as a process', { skip: notPrivileged || skipWithout('ip', 'nft') }, () => {
  let home: string;
  let files: string;
  const children: ChildProcess[] = [];

  const up = async (...options: string[]): Promise<ChildProcess & { readonly said: () => string }> => {
    const [node, ...args] = mizzen(['up', '--home', home, '--isolate', '--api-port', '0', '--xds-port', '0', ...options, files]) as [string, ...string[]];
    const child = spawn(node, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    children.push(child);
    let said = '';
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (said += text));
    await until(
      'the mesh to be up, or its end',
      async () => said,
      (text) => text.includes('Ctrl-C stops everything') || child.exitCode !== null,
      60_000,
    );
    return Object.assign(child, { said: () => said });
  };
  /** Its exit code, whether it has ended before or does now. */
  const end = async (child: ChildProcess, signal: NodeJS.Signals): Promise<number | null> => {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill(signal);
      await once(child, 'exit');
    }
    return child.exitCode;
  };
  /** What of a lab is in the kernel: its namespaces, its bridge, its processes. */
  const left = async () => {
    const [namespaces, links] = await Promise.all([program(['ip', 'netns', 'list']), program(['ip', '-br', 'link'])]);
    const id = /^mz([0-9a-f]{6})\./m.exec(links.output)?.[1];
    return {
      namespaces: namespaces.output.split('\n').filter((line) => line.startsWith('mz-')).length,
      hasBridge: id !== undefined || /^mz[0-9a-f]{6} /m.test(links.output),
    };
  };

  before(() => {
    home = mkdtempSync(join(tmpdir(), 'mizzen-crash-'));
    files = mkdtempSync(join(tmpdir(), 'mizzen-crash-files-'));
    writeFileSync(join(files, 'web.yaml'), yaml);
  });
  after(async () => {
    for (const child of children) await end(child, 'SIGKILL');
    await program(mizzen(['lab', 'clean', '--home', home]));
    rmSync(home, { recursive: true, force: true });
    rmSync(files, { recursive: true, force: true });
  });

  it('killed and started again it works, and a stop leaves nothing', async () => {
    const first = await up();
    assert.match(first.said(), /client-0 +sidecar .* 10\.\d+\.\d+\.\d+ +client-0 127\.0\.0\.1:15000/);
    assert.deepEqual(await left(), { namespaces: 2, hasBridge: true });
    await end(first, 'SIGKILL');
    assert.deepEqual(await left(), { namespaces: 2, hasBridge: true }, 'a killed run cannot clean up');
    const second = await up('--latency', '0ms', '--loss', '0.5%');
    assert.match(second.said(), /ended \d+ process/);
    const answer = await program(
      mizzen(['lab', 'exec', '--home', home, 'client', '--', 'curl', '-sS', '-m', '10', '-o', '/dev/null', '-w', '%{http_code}', 'http://web/']),
    );
    assert.equal(answer.output, '200', answer.error);
    assert.deepEqual(await left(), { namespaces: 2, hasBridge: true });
    assert.equal(await end(second, 'SIGTERM'), 0, second.said());
    assert.deepEqual(await left(), { namespaces: 0, hasBridge: false });
  });

  it('annotations of a workload say what of it is captured, and a second mesh of the same home is refused', async () => {
    const mesh = await up();
    const exec = (...command: string[]) => program(mizzen(['lab', 'exec', '--home', home, 'client', '--', ...command]));
    const second = await up();
    assert.match(second.said(), /a mesh with this home runs already \(process \d+\)/);
    assert.deepEqual(await left(), { namespaces: 2, hasBridge: true }, 'the first is not touched');
    const rules = await exec('nft', 'list', 'table', 'inet', 'mizzen');
    assert.match(rules.output, /tcp dport 8000 return|tcp dport \{ 8000 \} return/);
    await end(mesh, 'SIGTERM');
  });

  it('a killed run that is not started again is cleaned up by a command', async () => {
    const mesh = await up();
    await end(mesh, 'SIGKILL');
    const cleaned = await program(mizzen(['lab', 'clean', '--all']));
    assert.match(cleaned.output, /removed 2 hosts with all that ran on them/);
    assert.deepEqual(await left(), { namespaces: 0, hasBridge: false });
  });

  it('says what is wrong in a sentence, and leaves nothing behind', async () => {
    for (const [options, problem] of [
      [['--latency', 'soon'], /--latency soon is not understood: write a duration such as 20ms/],
      [['--loss', 'much'], /--loss much is not understood: write a percentage/],
    ] as const) {
      const mesh = await up(...options);
      assert.match(mesh.said(), problem);
      assert.equal(mesh.exitCode, 1);
    }
    const withoutLab = await program(mizzen(['up', '--home', home, '--latency', '1ms', files]));
    assert.match(withoutLab.error, /they need --isolate/);
    const [node, ...args] = mizzen(['up', '--home', home, '--isolate', '--api-port', '0', '--xds-port', '0', files]) as [string, ...string[]];
    const refused = await program(['setpriv', '--bounding-set=-all', '--inh-caps=-all', '--', node, ...args]);
    assert.match(refused.error, /a lab makes network namespaces, which needs root/);
    assert.deepEqual(await left(), { namespaces: 0, hasBridge: false });
  });

  it('delays packets where the kernel can, and says so where it cannot', async () => {
    const mesh = await up('--latency', '40ms');
    const exec = (...command: string[]) => program(mizzen(['lab', 'exec', '--home', home, 'client', '--', ...command]));
    if (/CONFIG_NET_SCH_NETEM/.test(mesh.said())) {
      assert.match(mesh.said(), /packets cannot be delayed here: the kernel has no netem/);
    } else {
      const timed = await exec('curl', '-sS', '-m', '10', '-o', '/dev/null', '-w', '%{time_total}', 'http://web/');
      assert.ok(Number(timed.output) >= 0.08, `${timed.output} s: there and back again`);
    }
    await end(mesh, 'SIGTERM');
  });
});
