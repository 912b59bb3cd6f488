import type tls from 'node:tls';
import { type Logger, MizzenError } from '@mizzen/common';
import type { BrokerDriver } from './driver.ts';
import { EmbeddedDriver } from './embedded.ts';
import { secretHider } from './hide-secrets.ts';

export interface DriverSurroundings {
  readonly logger: Logger;
  /** How to connect to the mesh's own broker, whose identity is checked. */
  readonly meshTls: (() => tls.ConnectionOptions) | undefined;
  /** Namespace and name of the Component. */
  readonly space: string;
  readonly appId: string;
  /** Fields of the metadata whose values came from Secrets. */
  readonly secretFields?: readonly string[];
}

/** The component types that there are, with the metadata that each takes (names are Dapr's where Dapr has them). */
export const componentTypes: Readonly<Record<string, readonly string[]>> = {
  'pubsub.mizzen': ['address', 'plaintext'],
  'pubsub.jetstream': ['natsURL', 'stream', 'token', 'user', 'password'],
  'pubsub.rabbitmq': ['connectionString', 'host', 'hostname', 'username', 'password', 'protocol'],
  'pubsub.redis': ['redisHost', 'redisPassword', 'maxLenApprox'],
};

/** Makes the driver of a component. Clients of other brokers are only loaded where one is used. Throws MizzenError for what cannot be made. */
export async function makeDriver(
  type: string,
  metadata: Readonly<Record<string, string>>,
  { logger, meshTls, space, appId, secretFields = [] }: DriverSurroundings,
): Promise<BrokerDriver> {
  const hide = secretHider(metadata, secretFields);
  const need = (name: string) => {
    const value = metadata[name];
    if (value === undefined || value === '') throw new MizzenError('invalid-component', `a component of type ${type} needs ${name} in its metadata`);
    return value;
  };
  switch (type) {
    case 'pubsub.mizzen': {
      const address = need('address');
      const cut = address.lastIndexOf(':');
      const isPlain = metadata['plaintext'] === 'true';
      return new EmbeddedDriver({
        host: address.slice(0, cut),
        port: Number(address.slice(cut + 1)),
        logger,
        hide,
        tls: isPlain ? undefined : meshTls,
        space,
        appId,
      });
    }
    case 'pubsub.jetstream': {
      const { NatsDriver } = await import('./nats.ts');
      return new NatsDriver({
        url: need('natsURL'),
        stream: metadata['stream'] || 'mizzen',
        token: metadata['token'],
        user: metadata['user'],
        password: metadata['password'],
        logger,
        hide,
      });
    }
    case 'pubsub.rabbitmq': {
      const { RabbitDriver } = await import('./rabbitmq.ts');
      const { hostname = 'localhost', username = 'guest', password = 'guest', protocol = 'amqp' } = metadata;
      const url =
        metadata['connectionString'] ?? metadata['host'] ?? `${protocol}://${encodeURIComponent(username)}:${encodeURIComponent(password)}@${hostname}`;
      return new RabbitDriver({ url, logger, hide: secretHider({ ...metadata, url }, secretFields) });
    }
    case 'pubsub.redis': {
      const { RedisDriver } = await import('./redis.ts');
      return new RedisDriver({
        address: need('redisHost'),
        password: metadata['redisPassword'],
        maxLength: Number(metadata['maxLenApprox'] ?? 0),
        logger,
        hide,
      });
    }
    default:
      throw new MizzenError('unknown-component', `components of type ${type} are not known here: ${Object.keys(componentTypes).join(', ')}`);
  }
}
