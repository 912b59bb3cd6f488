import type { IncomingMessage } from 'node:http';
import net from 'node:net';
import { errorBoundary, http, patientTimeout, timerMs } from '@mizzen/common';
import { atUnixSocket } from '../net/unix-socket.ts';
import type { ProxyConfig } from '../proxy-config.ts';
import { checkGrpcHealth } from './grpc-health.ts';

const boundary = errorBoundary('probe');

/** Asks the application whether it is well, as Kubernetes' readiness probes do, and tells when the answer changes. */
export class HealthProber {
  readonly #probe: NonNullable<ProxyConfig['probe']>;
  /** The Unix socket on which configuration says that the application listens; undefined: it has the port of the probe. */
  readonly #unixPath: () => string | undefined;
  readonly #onChange: (unhealthyReason: string | undefined) => void;
  #timer: NodeJS.Timeout | undefined;
  #failures: number;
  #isHealthy: boolean;
  #isClosed: boolean;

  constructor(probe: NonNullable<ProxyConfig['probe']>, unixPath: () => string | undefined, onChange: (unhealthyReason: string | undefined) => void) {
    this.#probe = probe;
    this.#unixPath = unixPath;
    this.#onChange = onChange;
    this.#timer = undefined;
    this.#failures = 0;
    this.#isHealthy = false;
    this.#isClosed = false;
  }

  start(): void {
    this.#next();
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
  }

  async #round(): Promise<void> {
    const problem = await this.#ask();
    if (this.#isClosed) return;
    if (problem === undefined) {
      this.#failures = 0;
      if (!this.#isHealthy) {
        this.#isHealthy = true;
        this.#onChange(undefined);
      }
    } else if (this.#isHealthy && ++this.#failures >= (this.#probe.failureThreshold ?? 3)) {
      this.#isHealthy = false;
      this.#onChange(problem);
    }
  }

  /** One round now, and the next after the pause, whatever the outcome. An application that starts is probed often, so that it is in use as soon as it can be. */
  #next(): void {
    const again = () => {
      if (!this.#isClosed) this.#timer = boundary.after(this.#isHealthy ? (this.#probe.periodMs ?? 2_000) : 100, () => this.#next(), again);
    };
    boundary.start(() => this.#round().then(again), again);
  }

  #ask(): Promise<string | undefined> {
    const timeoutMs = timerMs(this.#probe.timeoutMs ?? 1_000);
    const { path, port, address = '127.0.0.1', grpcService } = this.#probe;
    const unixPath = this.#unixPath();
    const connect = () =>
      unixPath === undefined ? boundary.own(net.connect({ host: address, port })) : atUnixSocket(unixPath, (at) => boundary.own(net.connect({ path: at })));
    if (grpcService !== undefined) return checkGrpcHealth(address, port, grpcService, timeoutMs, connect);
    return new Promise((resolve) => {
      if (path === undefined) {
        const socket = connect();
        const finish = (problem: string | undefined) => {
          stopWaiting();
          socket.destroy();
          resolve(problem);
        };
        socket.once('connect', () => finish(undefined));
        const stopWaiting = patientTimeout(boundary, timeoutMs, () => finish(`${unixPath ?? `port ${port}`} did not answer within ${timeoutMs} ms`));
        socket.once('error', (error) => finish(error.message));
        return;
      }
      const received = (response: IncomingMessage) => {
        stopWaiting();
        response.resume();
        const { statusCode = 0 } = response;
        resolve(statusCode >= 200 && statusCode < 400 ? undefined : `GET ${path} answered ${statusCode}`);
      };
      const request = boundary.own(http.get({ host: address, port, path, createConnection: connect }, received));
      const stopWaiting = patientTimeout(boundary, timeoutMs, () => request.destroy(new Error(`GET ${path} did not answer within ${timeoutMs} ms`)));
      request.once('close', () => {
        stopWaiting();
        resolve(`GET ${path} was not answered`);
      });
      request.once('error', (error) => resolve(error.message));
    });
  }
}
