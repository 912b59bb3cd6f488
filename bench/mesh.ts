import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { findKind } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import { homeFiles, startControlPlane } from '@mizzen/control';
import { bindWorkload } from '../e2e/support/mesh.ts';
import { proxyCommand } from '../packages/cli/runner/program.ts';
import type { Processes } from './processes.ts';

export interface Mesh {
  /** A sidecar before a service that has none. */
  readonly plain: number;
  /** The two sidecars of a call with mutual TLS. */
  readonly pair: readonly [client: number, server: number];
  close(): Promise<void>;
}

/** Real sidecars with a real control plane: what a mesh runs, with Istio's metrics and its access log line. */
export async function startMesh(
  processes: Processes,
  folder: string,
  cpu: number,
  ports: { readonly origin: number; readonly plain: number; readonly client: number; readonly inbound: number },
): Promise<Mesh> {
  const home = join(folder, 'home');
  const plane = await startControlPlane({ home, apiPort: 0, xdsPort: 0, logger: silentLogger });
  const context = { manager: 'bench', origin: { source: 'api' as const, name: 'bench' } };
  await plane.registry.create(
    findKind('networking.istio.io', 'ServiceEntry')!,
    'default',
    {
      apiVersion: 'networking.istio.io/v1',
      kind: 'ServiceEntry',
      metadata: { name: 'plain' },
      spec: {
        hosts: ['plain.bench'],
        location: 'MESH_EXTERNAL',
        resolution: 'STATIC',
        ports: [{ number: 80, name: 'http', protocol: 'HTTP' }],
        endpoints: [{ address: '127.0.0.1', ports: { http: ports.origin } }],
      },
    },
    context,
  );
  await plane.registry.create(
    findKind('', 'Service')!,
    'default',
    { apiVersion: 'v1', kind: 'Service', metadata: { name: 'web' }, spec: { selector: { app: 'web' }, ports: [{ name: 'http', port: 80, targetPort: 8080 }] } },
    context,
  );
  const run = async (name: string, extra: object, port: number) => {
    const { token } = await plane.tokens.issue('default', 'default', [], 3600);
    await bindWorkload(plane, { name, serviceAccount: 'default' });
    const tokenFile = join(folder, `${name}.token`);
    writeFileSync(tokenFile, token);
    const config = {
      type: 'sidecar',
      name,
      namespace: 'default',
      workload: name,
      serviceAccount: 'default',
      labels: { app: name },
      trustDomain: 'cluster.local',
      address: '127.0.0.1',
      control: `127.0.0.1:${plane.xdsPort}`,
      rootCertificateFile: homeFiles(home).rootCertificate,
      tokenFile,
      accessLogFile: join(folder, `${name}.access.log`),
      ...extra,
    };
    const file = join(folder, `${name}.json`);
    writeFileSync(file, JSON.stringify(config));
    return processes.start(cpu, [...proxyCommand, '--config', file, '--log-level', 'error'], port);
  };
  const server = await run(
    'web',
    { registers: true, inbound: [{ name: 'http', port: 8080, listen: `127.0.0.1:${ports.inbound}`, app: `127.0.0.1:${ports.origin}` }] },
    ports.inbound,
  );
  const client = await run('client', { outbound: `127.0.0.1:${ports.client}` }, ports.client);
  const plain = await run('plain', { outbound: `127.0.0.1:${ports.plain}` }, ports.plain);
  return { plain, pair: [client, server], close: () => plane.close() };
}
