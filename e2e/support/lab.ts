import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { decodeYaml, findKind, groupOf, type Resource } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import { collectionPath } from '../../packages/cli/api-client.ts';
import { type LabHost, readHosts, readLab } from '../../packages/cli/lab/lab-state.ts';
import { MeshRunner } from '../../packages/cli/runner/mesh-runner.ts';
import { until } from './http.ts';

/** Network namespaces and rules of the kernel are root's. */
export const notPrivileged: string | false = process.getuid?.() === 0 ? false : 'needs root';

export interface ProgramOutput {
  readonly code: number | null;
  readonly output: string;
  readonly error: string;
}

/** Runs a program to its end; never throws for what it exits with. */
export async function program(
  command: readonly string[],
  options: { readonly env?: NodeJS.ProcessEnv; readonly input?: string; readonly timeoutMs?: number } = {},
): Promise<ProgramOutput> {
  const child = spawn(command[0]!, command.slice(1), { stdio: 'pipe', env: options.env ?? process.env, timeout: options.timeoutMs ?? 60_000 });
  let output = '';
  let error = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (error += text));
  child.stdin.on('error', () => {});
  child.stdin.end(options.input ?? '');
  const code = await new Promise<number | null>((resolve) => {
    child.once('error', (problem) => {
      error += problem.message;
      resolve(-1);
    });
    child.once('close', resolve);
  });
  return { code, output, error };
}

/** A mesh of hosts in network namespaces, from YAML; its applications know nothing of it. */
export class TestLab {
  readonly home: string;
  readonly directory: string;
  readonly notices: string[];
  runner: MeshRunner;

  private constructor(yaml: string) {
    this.home = mkdtempSync(join(tmpdir(), 'mizzen-lab-'));
    this.directory = mkdtempSync(join(tmpdir(), 'mizzen-lab-files-'));
    this.notices = [];
    writeFileSync(join(this.directory, 'lab.yaml'), yaml);
    this.runner = this.#makeRunner({ latencyMs: 0, lossPercent: 0 });
  }

  static async start(yaml: string): Promise<TestLab> {
    const lab = new TestLab(yaml);
    await lab.runner.start();
    return lab;
  }

  #makeRunner(isolate: { readonly latencyMs: number; readonly lossPercent: number }): MeshRunner {
    return new MeshRunner({
      directory: this.directory,
      home: this.home,
      apiPort: 0,
      xdsPort: 0,
      isolate,
      logger: silentLogger,
      onLine: () => {},
      onNotice: (name, text) => this.notices.push(`${name}: ${text}`),
      onProgress: () => {},
    });
  }

  host(name: string): LabHost {
    const host = readHosts(this.home).find((candidate) => candidate.name === name || candidate.workload === name);
    if (!host) throw new Error(`no host ${name}`);
    return host;
  }

  get bridge(): string {
    return readLab(this.home)!.bridge;
  }

  /** As if somebody had logged in on the host: what is sent there is captured. */
  exec(name: string, command: readonly string[], options: { readonly input?: string; readonly timeoutMs?: number } = {}): Promise<ProgramOutput> {
    return program(mizzen(['lab', 'exec', '--home', this.home, name, '--', ...command]), options);
  }

  mizzen(args: readonly string[], options: { readonly timeoutMs?: number } = {}): Promise<ProgramOutput> {
    return program(mizzen([...args, '--home', this.home]), options);
  }

  log(name: string): string {
    return readFileSync(join(this.home, 'logs', `${name}.proxy.log`), 'utf8');
  }

  /** Applies YAML and waits until every proxy has it. */
  async apply(yaml: string): Promise<void> {
    const { resources, problems } = decodeYaml(yaml, 'test.yaml');
    if (problems.length > 0) throw new Error(JSON.stringify(problems));
    for (const { resource } of resources)
      await this.runner.api.call('PATCH', `${pathOf(resource)}?fieldManager=test&force=true`, { body: resource, contentType: 'application/apply-patch+yaml' });
    await this.synced();
  }

  async remove(yaml: string): Promise<void> {
    for (const { resource } of decodeYaml(yaml, 'test.yaml').resources) await this.runner.api.call('DELETE', pathOf(resource));
    await this.synced();
  }

  async synced(): Promise<void> {
    await new Promise((resolve) => setTimeout(resolve, 100)); // changes of one moment are pushed together, after this
    await until(
      'all proxies synced',
      async () => ((await this.runner.api.call('GET', '/mizzen/v1/proxies')).body as { proxies: { state: string }[] }).proxies,
      (proxies) => proxies.every((proxy) => proxy.state === 'synced'),
    );
  }

  async close(): Promise<void> {
    await this.runner.stop();
    rmSync(this.home, { recursive: true, force: true });
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** The command line of `mizzen`. */
export function mizzen(args: readonly string[]): string[] {
  return [process.execPath, join(import.meta.dirname, '../../packages/cli/bin/mizzen'), ...args];
}

function pathOf(resource: Resource): string {
  return `${collectionPath(findKind(groupOf(resource.apiVersion), resource.kind)!, resource.metadata.namespace)}/${resource.metadata.name}`;
}
