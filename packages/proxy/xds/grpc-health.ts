import http2 from 'node:http2';
import type net from 'node:net';
import { errorBoundary, patientTimeout } from '@mizzen/common';
import { healthRequest, servingStatus } from '../upstream/grpc-health-messages.ts';

const boundary = errorBoundary('probe');

/** Asks `grpc.health.v1.Health/Check` for a service; '' is the server as a whole. Resolves with the problem, or undefined when it serves. */
export function checkGrpcHealth(address: string, port: number, service: string, timeoutMs: number, connect?: () => net.Socket): Promise<string | undefined> {
  return new Promise((resolve) => {
    const session = boundary.own(
      http2.connect(`http://${address.includes(':') ? `[${address}]` : address}:${port}`, connect === undefined ? {} : { createConnection: connect }),
    );
    const finish = (problem: string | undefined) => {
      stopWaiting();
      session.destroy();
      resolve(problem);
    };
    const stopWaiting = patientTimeout(boundary, timeoutMs, () => finish(`grpc.health.v1.Health/Check did not answer within ${timeoutMs} ms`));
    session.on('error', (error) => finish(error.message));
    const stream = boundary.own(
      session.request({
        ':method': 'POST',
        ':path': '/grpc.health.v1.Health/Check',
        ':authority': service === '' ? 'localhost' : service,
        'content-type': 'application/grpc',
        te: 'trailers',
      }),
    );
    const chunks: Buffer[] = [];
    let status: string | undefined;
    stream.on('response', (headers) => {
      status = headers['grpc-status']?.toString();
      if (headers[':status'] !== 200) finish(`grpc.health.v1.Health/Check was answered with HTTP ${headers[':status']}`);
    });
    stream.on('trailers', (trailers) => {
      status = trailers['grpc-status']?.toString();
    });
    stream.on('data', (chunk: Buffer) => chunks.push(chunk));
    stream.on('error', (error) => finish(error.message));
    stream.on('close', () => {
      if (status !== '0') return finish(`grpc.health.v1.Health/Check ended with status ${status ?? 'none'}`);
      const serving = servingStatus(Buffer.concat(chunks));
      finish(serving === 'SERVING' ? undefined : `grpc.health.v1.Health/Check said ${serving}`);
    });
    stream.end(healthRequest(service));
  });
}
