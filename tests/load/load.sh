# Servers and clients that go on until the file `stop` is there. Each client says in a file NAME.txt how each of its rounds went;
# FAILED in it is a round that did. Usage: load.sh DIRECTORY CLIENT...
#
# close, keep: wrk asks nginx, over a connection per request, and over kept ones; each, kept: redis-benchmark asks redis the same
# ways; bank, desk: pgbench asks PostgreSQL over kept connections, and over one per transaction; echo: echo.py checks each byte.
cd "$1" || exit 1
shift
chmod 755 .
wants() { for name in $clients; do for wanted; do [ "$name" = "$wanted" ] && return; done; done; return 1; }
clients=$*
here=$PWD

# PostgreSQL refuses root.
as=
[ "$(id -u)" != 0 ] || as="setpriv --reuid 65534 --regid 65534 --clear-groups --"
pg=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -n 1)

if wants close keep; then
    echo 'in the fold' >index.html
    chmod 644 index.html
    cat >nginx.conf <<END
daemon off; worker_processes 2; pid $here/nginx.pid; error_log $here/error.log;
events { worker_connections 512; }
http { access_log off; keepalive_requests 100000000;
  client_body_temp_path $here/body; proxy_temp_path $here/proxy; fastcgi_temp_path $here/fastcgi;
  uwsgi_temp_path $here/uwsgi; scgi_temp_path $here/scgi;
  server { listen 127.0.0.1:8080; root $here; } }
END
    nginx -p "$here" -e "$here/error.log" -c "$here/nginx.conf" &
fi
wants each kept && redis-server --save '' --port 6379 >redis.log &
if wants bank desk; then
    mkdir data
    [ -z "$as" ] || chown 65534:65534 data
    { $as "$pg/initdb" -A trust -U shepherd --no-sync -D data; } >initdb.log 2>&1 || echo "FAILED to make a database" >bank.txt
    $as "$pg/postgres" -D data -p 5432 -c fsync=off -c unix_socket_directories= -c listen_addresses=127.0.0.1 \
        -c autovacuum=off >postgres.log 2>&1 &
fi
wants echo && python3 echo.py serve >serve.log 2>&1 &

if wants close keep; then until curl -s http://127.0.0.1:8080/; do sleep 0.05; done >up 2>&1; fi
if wants each kept; then until redis-cli ping; do sleep 0.05; done >up 2>&1; fi
if wants bank desk; then
    until pg_isready -h 127.0.0.1 -p 5432; do sleep 0.05; done >up 2>&1
    "$pg/pgbench" -h 127.0.0.1 -U shepherd -i -q postgres >up 2>&1 || echo "FAILED to fill the database" >bank.txt
fi
if wants echo; then until [ -e listening ]; do sleep 0.05; done; fi

rounds() { until [ -e stop ]; do "$@" || echo "FAILED with $?"; done; }
asking=
for client in $clients; do
    case $client in
    close) set -- wrk -t1 -c4 -d1s --timeout 20s -H 'Connection: close' http://127.0.0.1:8080/ ;;
    keep) set -- wrk -t1 -c4 -d1s --timeout 20s http://127.0.0.1:8080/ ;;
    each) set -- redis-benchmark -q -n 100 -c 5 -k 0 -t get ;;
    kept) set -- redis-benchmark -q -n 2000 -c 5 -t get ;;
    bank) set -- "$pg/pgbench" -h 127.0.0.1 -U shepherd -S -n -c2 -T1 postgres ;;
    desk) set -- "$pg/pgbench" -h 127.0.0.1 -U shepherd -S -n -C -c2 -T1 postgres ;;
    echo) set -- python3 echo.py ask ;;
    esac
    rounds "$@" >>"$client.txt" 2>&1 &
    asking="$asking $!"
done
wait $asking
# What is left in the environment ends with it.
exit 0
