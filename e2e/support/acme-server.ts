import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { TestAuthority } from './certificates.ts';
import { call, until } from './http.ts';
import { testPorts } from './ports.ts';

export interface AcmeServerOptions {
  /** Where it looks for challenges. */
  readonly httpPort: number;
  readonly validitySeconds?: number;
  /** A name that it refuses. */
  readonly blocked?: string;
  /** Accounts have to belong to one of these, by id; base64url. */
  readonly bindings?: Readonly<Record<string, string>>;
}

/** Pebble, Let's Encrypt's own server for tests, with a name server of its own, for which everything is on this machine. It refuses a fifth of all nonces, as it may. */
export class AcmeServer {
  readonly directory: string;
  /** PEM: by which it is known. */
  readonly roots: string;
  readonly #folder: string;
  readonly #children: readonly ChildProcess[];

  private constructor(directory: string, roots: string, folder: string, children: readonly ChildProcess[]) {
    this.directory = directory;
    this.roots = roots;
    this.#folder = folder;
    this.#children = children;
  }

  static async start({ httpPort, validitySeconds = 86_400, blocked, bindings }: AcmeServerOptions): Promise<AcmeServer> {
    const folder = mkdtempSync(join(tmpdir(), 'mizzen-acme-'));
    const authority = new TestAuthority(folder);
    const { cert, key } = authority.issue('acme', ['DNS:localhost']);
    const ports = testPorts;
    const [port, management, dns, dnsManagement] = [await ports.next(), await ports.next(), await ports.next(), await ports.next()];
    const pebble = {
      ...{ listenAddress: `127.0.0.1:${port}`, managementListenAddress: `127.0.0.1:${management}`, certificate: cert, privateKey: key, httpPort, tlsPort: 1 },
      ...{ ocspResponderURL: '', externalAccountBindingRequired: bindings !== undefined, externalAccountMACKeys: bindings ?? {} },
      ...{ domainBlocklist: blocked === undefined ? [] : [blocked], retryAfter: { authz: 1, order: 1 }, keyAlgorithm: 'ecdsa' },
      profiles: { default: { description: 'of this test', validityPeriod: validitySeconds } },
    };
    const config = join(folder, 'pebble.json');
    writeFileSync(config, JSON.stringify({ pebble }));
    const env = { ...process.env, PEBBLE_VA_NOSLEEP: '1', PEBBLE_WFE_NONCEREJECT: '20' };
    const none = ['-http01', '', '-https01', '', '-tlsalpn01', '', '-doh', '', '-defaultIPv6', ''];
    const children = [
      spawn('pebble-challtestsrv', [...none, '-dnsserver', `127.0.0.1:${dns}`, '-management', `127.0.0.1:${dnsManagement}`], { stdio: 'ignore' }),
      spawn('pebble', ['-config', config, '-dnsserver', `127.0.0.1:${dns}`, '-strict'], { stdio: 'ignore', env }),
    ];
    const server = new AcmeServer(`https://localhost:${port}/dir`, readFileSync(authority.certificate, 'utf8'), folder, children);
    await until(
      'Pebble answers',
      () => call({ port, path: '/dir', headers: { host: 'localhost', 'user-agent': 'test' }, tls: { rejectUnauthorized: false } }),
      ({ status }) => status === 200,
      60_000,
    ).catch((error: unknown) => {
      server.close();
      throw error;
    });
    return server;
  }

  close(): void {
    for (const child of this.#children) child.kill('SIGKILL');
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
