import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { secretHider } from './hide-secrets.ts';

describe('what a broker driver says', () => {
  it('holds no value of a Secret, no password or token, and no user information of a URL, in any encoding', () => {
    for (const password of ['hunter22', 'p@ss/word', 'a:b:c:d', 'sp ace', '100%25', '[nope', 'x,y,zzzz']) {
      const url = `amqp://user:${password}@broker:5672/vhost`;
      const texts = [url, `Invalid URL: ${url}`, password, encodeURIComponent(password), `cannot connect to ${url},${url}`];
      const hiders = [secretHider({ connectionString: url }, []), secretHider({ redisPassword: password }, []), secretHider({ host: password }, ['host'])];
      for (const hide of hiders)
        for (const text of texts) {
          const shown = hide(text);
          assert.ok(!shown.includes(password) && !shown.includes(encodeURIComponent(password)), shown);
        }
    }
    const many = secretHider({ natsURL: 'nats://a:first@one:4222,nats://b:second@two:4222' }, []);
    assert.doesNotMatch(many('nats://b:second@two:4222 and nats://a:first@one:4222'), /first|second/);
  });

  it('names the broker, and is left alone otherwise', () => {
    const hide = secretHider({ connectionString: 'amqp://user:hunter22@broker:5672', password: 'abc' }, []);
    assert.equal(hide('RabbitMQ at amqp://user:hunter22@broker:5672 is away'), 'RabbitMQ at amqp://[redacted]@broker:5672 is away');
    assert.equal(hide('abc'), 'abc', 'what is shorter than four characters would be hidden in words');
  });
});
