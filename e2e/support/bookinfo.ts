import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { decodeYaml, findKind, groupOf } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import type { ProxyStatus } from '@mizzen/control';
import { type ApiAnswer, ApiFailure, collectionPath } from '../../packages/cli/api-client.ts';
import { MeshRunner } from '../../packages/cli/runner/mesh-runner.ts';
import { until } from './http.ts';

const root = join(import.meta.dirname, '../..');
const fixtures = join(process.env['MIZZEN_FIXTURES'] ?? join(root, '../shared/fixtures'), 'bookinfo/networking');

/** Where Istio's routing samples are missing, their tests are skipped; `npm test` has said so. */
export const fixturesMissing: string | false = existsSync(fixtures) ? false : "needs Istio's routing samples";

export function fixture(name: string): string {
  return readFileSync(join(fixtures, name), 'utf8');
}

/** The bookinfo example as `npm start` runs it: every part a process of its own. */
export class Bookinfo {
  readonly home: string;
  readonly runner: MeshRunner;
  readonly notices: string[];

  private constructor(isIsolated: boolean) {
    this.home = mkdtempSync(join(tmpdir(), 'mizzen-bookinfo-'));
    this.notices = [];
    this.runner = new MeshRunner({
      directory: join(root, 'examples/bookinfo'),
      home: this.home,
      apiPort: 0,
      xdsPort: 0,
      isolate: isIsolated ? { latencyMs: 0, lossPercent: 0 } : undefined,
      logger: silentLogger,
      onLine: () => {},
      onNotice: (name, text) => this.notices.push(`${name}: ${text}`),
      onProgress: () => {},
    });
  }

  /** `isIsolated`: each replica on a host of its own (root). */
  static async start({ isIsolated = false } = {}): Promise<Bookinfo> {
    const mesh = new Bookinfo(isIsolated);
    await mesh.runner.start();
    return mesh;
  }

  outboundPort(replica: string): number {
    return Number(this.#address(replica).outbound?.split(':')[1]);
  }

  inboundPort(replica: string): number {
    return Number(this.#address(replica).ports[0]?.listen.split(':')[1]);
  }

  adminPort(replica: string): number {
    return this.#address(replica).adminPort!;
  }

  #address(replica: string) {
    const address = this.runner.addresses().find((candidate) => candidate.name === replica);
    if (!address) throw new Error(`no replica ${replica}`);
    return address;
  }

  async proxies(): Promise<ProxyStatus[]> {
    return ((await this.runner.api.call('GET', '/mizzen/v1/proxies')).body as { proxies: ProxyStatus[] }).proxies;
  }

  async synced(): Promise<void> {
    await until(
      'all proxies synced',
      () => this.proxies(),
      (proxies) => proxies.length === 8 && proxies.every((proxy) => proxy.state === 'synced'),
    );
  }

  /** Applies YAML through the API and waits until all sidecars have it. Returns the warnings. */
  async apply(yaml: string): Promise<string[]> {
    const warnings: string[] = [];
    for (const { resource, origin } of this.#decode(yaml)) {
      const answer: ApiAnswer = await this.runner.api.call('PATCH', `${this.#path(resource)}?fieldManager=test&force=true`, {
        body: resource,
        contentType: 'application/apply-patch+yaml',
        origin,
      });
      warnings.push(...answer.warnings);
    }
    await this.synced();
    return warnings;
  }

  async remove(yaml: string): Promise<void> {
    for (const { resource } of this.#decode(yaml)) {
      await this.runner.api.call('DELETE', this.#path(resource)).catch((error: unknown) => {
        if (!(error instanceof ApiFailure) || error.status !== 404) throw error;
      });
    }
    await this.synced();
  }

  async close(): Promise<void> {
    await this.runner.stop();
    rmSync(this.home, { recursive: true, force: true });
  }

  #decode(yaml: string) {
    const { resources, problems } = decodeYaml(yaml, 'fixture.yaml');
    if (problems.length > 0) throw new Error(JSON.stringify(problems));
    return resources;
  }

  #path(resource: { apiVersion: string; kind: string; metadata: { namespace?: string; name: string } }): string {
    return `${collectionPath(findKind(groupOf(resource.apiVersion), resource.kind)!, resource.metadata.namespace)}/${resource.metadata.name}`;
  }
}
