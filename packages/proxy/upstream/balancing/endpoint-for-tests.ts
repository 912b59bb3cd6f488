import { unknownPeer } from '../../telemetry/peer-metadata.ts';
import { Endpoint } from '../endpoint.ts';
import { plainSocket, plainTransport } from '../transport.ts';

export const testEndpoint = (port: number, weight = 1, isHealthy = true): Endpoint =>
  new Endpoint({ address: '10.0.0.1', port, weight, isHealthy, transport: plainTransport(plainSocket), peer: unknownPeer });
