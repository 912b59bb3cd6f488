import type { Logger } from '@mizzen/common';
import { errorBoundary, verifyServerCertificate, vetLibraryClients } from '@mizzen/common';
import { Redis } from 'ioredis';
import type { LimitCounters, Window } from './limit-counters.ts';

const boundary = errorBoundary('rate-limit.redis');

const prefix = 'mizzen:rl:';

/** In Redis: for control planes that count together, and over their restarts. */
export class RedisCounters implements LimitCounters {
  readonly #redis: Redis;

  /** `address`: `host:port`, or a redis:// URL. */
  constructor(address: string, logger: Logger) {
    vetLibraryClients();
    this.#redis = boundary.own(
      new Redis(address.includes('://') ? address : `redis://${address}`, {
        ...(/^rediss:/i.test(address) ? { tls: { checkServerIdentity: verifyServerCertificate } } : {}),
        // A late response is of no use: the caller has gone on without it.
        commandTimeout: 500,
        maxRetriesPerRequest: 1,
        enableOfflineQueue: false,
        retryStrategy: (attempt) => Math.min(2_000, 50 * attempt),
      }),
      () => {},
    );
    let isReported = false;
    this.#redis.on('error', (error) => {
      if (!isReported) logger.warn(`limits cannot be counted in Redis: ${error.message}`, { at: address });
      isReported = true;
    });
    this.#redis.on('ready', () => {
      isReported = false;
    });
  }

  async add(windows: readonly Window[]): Promise<number[]> {
    const pipeline = this.#redis.pipeline();
    for (const { key, hits, seconds } of windows) {
      pipeline.incrby(prefix + key, hits);
      // A minute more: clocks of those who count may differ.
      pipeline.expire(prefix + key, seconds + 60, 'NX');
    }
    const results = await pipeline.exec();
    return windows.map((_window, i) => {
      const [error, value] = results?.[2 * i] ?? [new Error('no answer'), undefined];
      if (error) throw error;
      return Number(value);
    });
  }

  async close(): Promise<void> {
    this.#redis.disconnect();
  }
}
