import 'reflect-metadata';
import { webcrypto } from 'node:crypto';
import { readFileSync } from 'node:fs';
import net from 'node:net';
import tls from 'node:tls';
import { type Client, createClient, type Transport } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';
import { homeFiles } from '@mizzen/control';
import { SpiffeWorkloadAPI } from '@mizzen/envoy-api/gen/spiffe/workload_pb.js';
import { Pkcs10CertificateRequestGenerator } from '@peculiar/x509';
import { exportKey } from '../../packages/control/citadel/ca-generation.ts';
import type { TestMesh } from './mesh.ts';

/** A certificate with its key, PEM. */
export interface Pair {
  readonly cert: string;
  readonly key: string;
}

/** A certificate request and its key, PEM. */
export async function signingRequest(): Promise<{ readonly csr: string; readonly key: string }> {
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  const csr = (await Pkcs10CertificateRequestGenerator.create({ name: 'O=x', keys, signingAlgorithm: algorithm }, webcrypto)).toString('pem');
  return { csr, key: await exportKey(keys.privateKey) };
}

/** To the control plane's gRPC services, perhaps with a client certificate. */
export function citadelTransport(mesh: TestMesh, pair?: Pair): Transport {
  return createGrpcTransport({
    baseUrl: `https://127.0.0.1:${mesh.plane.xdsPort}`,
    nodeOptions: { ca: readFileSync(homeFiles(mesh.home).rootCertificate), servername: 'mizzen-control', ...pair },
  });
}

/** The status that a sidecar answers whoever shows this certificate with; undefined: it is not let in. */
export function statusFor(port: number, pair: Pair): Promise<number | undefined> {
  return new Promise((resolve) => {
    const socket = tls.connect({ host: '127.0.0.1', port, rejectUnauthorized: false, ALPNProtocols: ['istio'], ...pair });
    socket.once('secureConnect', () => socket.write('GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n'));
    socket.once('data', (data) => resolve(Number(data.toString('latin1').split(' ')[1])));
    for (const event of ['error', 'close']) socket.once(event, () => resolve(undefined));
  });
}

export function workloadApi(socketPath: string): Client<typeof SpiffeWorkloadAPI> {
  const transport = createGrpcTransport({ baseUrl: 'http://localhost', nodeOptions: { createConnection: () => net.connect(socketPath) } });
  return createClient(SpiffeWorkloadAPI, transport);
}
