// Workers that share one listening socket, which the primary hands to them over a Unix socket.
'use strict';
const assert = require('assert');
const cluster = require('cluster');
const http = require('http');

cluster.schedulingPolicy = cluster.SCHED_NONE;

if (cluster.isPrimary) {
  const workers = [cluster.fork(), cluster.fork()];
  let port;
  let listening = 0;
  cluster.on('listening', (worker, address) => {
    assert.ok(port === undefined || port === address.port);
    port = address.port;
    listening += 1;
    if (listening === workers.length) ask(100);
  });
  function ask(left) {
    if (left === 0) {
      workers.forEach((worker) => worker.kill());
      console.log('good');
      return;
    }
    http.get({ port, host: '127.0.0.1', agent: false }, (response) => {
      let text = '';
      response.on('data', (part) => { text += part; });
      response.on('end', () => {
        assert.ok(workers.some((worker) => text === `worker ${worker.process.pid}`), text);
        ask(left - 1);
      });
    });
  }
} else {
  http.createServer((_, response) => response.end(`worker ${process.pid}`)).listen(0, '127.0.0.1');
}
