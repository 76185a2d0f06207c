# Sourced: a PostgreSQL primary and two synchronous standbys on this machine, with TLS and client certificates, standing in
# for three machines (deploy/postgres.md). Needs KEYPEER_HOME, PORT, and `children`, `say` and `die` of the sourcing script.

# PostgreSQL refuses to run as root, and its user can't enter root's folders.
PG_FOLDER=/var/tmp/keypeer-postgres-$(printf '%s' "$KEYPEER_HOME" | sha256sum | cut -c1-12)
PG_TLS=$PG_FOLDER/tls
PG_NAMES=(a b c)
STORE=

pg_bin() { compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -n 1; }
pg_port() { local at; for at in 0 1 2; do [ "${PG_NAMES[$at]}" = "$1" ] && printf '%s\n' $((PORT + 10 + at)); done; }
# No server outlives this script: SIGQUIT is PostgreSQL's immediate shutdown.
as_postgres() {
    if [ "$(id -u)" -eq 0 ]; then
        setpriv --reuid=postgres --regid=postgres --init-groups --pdeathsig=QUIT -- "$@"
    else
        setpriv --pdeathsig=QUIT -- "$@"
    fi
}

pg_certificate() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$PG_TLS/$1.key" -subj "/CN=$1" 2>/dev/null |
        openssl x509 -req -CA "$PG_TLS/ca.crt" -CAkey "$PG_TLS/ca.key" -days 3650 -out "$PG_TLS/$1.crt" \
            -extfile <(printf 'subjectAltName=DNS:localhost\n') 2>/dev/null
}

# Everything of the three servers; started again after an interruption it begins anew.
make_postgres() {
    local name
    rm -rf "$PG_FOLDER"
    mkdir -p "$PG_TLS"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$PG_TLS/ca.key" -out "$PG_TLS/ca.crt" \
        -days 3650 -subj /CN=demo-postgres-ca 2>/dev/null
    pg_certificate server
    pg_certificate keypeer
    [ "$(id -u)" -ne 0 ] || chown -R postgres: "$PG_FOLDER"
    as_postgres "$(pg_bin)/initdb" -D "$PG_FOLDER/a" -U postgres --auth=trust -E UTF8 --locale=C >"$PG_FOLDER/initdb.log" 2>&1 ||
        die "initdb failed, see $PG_FOLDER/initdb.log"
    cat >>"$PG_FOLDER/a/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
unix_socket_directories = '$PG_FOLDER'
ssl = on
ssl_cert_file = '$PG_TLS/server.crt'
ssl_key_file = '$PG_TLS/server.key'
ssl_ca_file = '$PG_TLS/ca.crt'
wal_keep_size = '256MB'
include_if_exists = 'server.conf'
CONF
    printf 'local all postgres trust\nhostssl all keypeer 127.0.0.1/32 cert\nhostssl replication keypeer 127.0.0.1/32 cert\n' \
        >"$PG_FOLDER/a/pg_hba.conf"
    # One user without the standbys that aren't there yet; then three copies of one state.
    as_postgres "$(pg_bin)/postgres" --single -D "$PG_FOLDER/a" postgres >"$PG_FOLDER/initdb.log" 2>&1 <<'SQL'
CREATE ROLE keypeer LOGIN REPLICATION;
CREATE DATABASE keypeer OWNER keypeer;
SQL
    for name in b c; do cp -a "$PG_FOLDER/a" "$PG_FOLDER/$name"; touch "$PG_FOLDER/$name/standby.signal"; done
    for name in "${PG_NAMES[@]}"; do pg_settings "$name" >"$PG_FOLDER/$name/server.conf"; done
    [ "$(id -u)" -ne 0 ] || chown -R postgres: "$PG_FOLDER"
    touch "$PG_FOLDER/made"
}

pg_settings() {
    local others=("${PG_NAMES[@]/$1/}")
    printf "port = %s\ncluster_name = '%s'\n" "$(pg_port "$1")" "$1"
    printf "synchronous_standby_names = 'ANY 1 (%s)'\n" "$(printf '%s\n' "${others[@]}" | sed '/^$/d' | paste -sd,)"
    printf "primary_conninfo = 'host=localhost port=%s user=keypeer application_name=%s sslmode=verify-full sslrootcert=%s sslcert=%s sslkey=%s'\n" \
        "$(pg_port a)" "$1" "$PG_TLS/ca.crt" "$PG_TLS/keypeer.crt" "$PG_TLS/keypeer.key"
}

start_postgres() {
    local name tries standbys
    [ -e "$PG_FOLDER/made" ] && grep -q "^port = $(pg_port a)$" "$PG_FOLDER/a/server.conf" || {
        [ ! -e "$KEYPEER_HOME/keypeer.toml" ] || die "$KEYPEER_HOME has another store than the servers of --postgres on this port: set KEYPEER_HOME"
        say "making three PostgreSQL servers in $PG_FOLDER"
        make_postgres
    }
    say "starting a primary and two synchronous standbys on ports $(pg_port a) to $(pg_port c)"
    for name in "${PG_NAMES[@]}"; do
        as_postgres "$(pg_bin)/postgres" -D "$PG_FOLDER/$name" >>"$PG_FOLDER/$name.log" 2>&1 9>&- &
        children+=($!)
    done
    for tries in $(seq 150); do
        standbys=$(as_postgres psql -h "$PG_FOLDER" -p "$(pg_port a)" -U postgres -Atc \
            "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'" 2>/dev/null || true)
        [ "$standbys" = 2 ] && break
        sleep 0.2
    done
    [ "$standbys" = 2 ] || die "the standbys don't follow, see $PG_FOLDER/*.log"
    mkdir -p "$KEYPEER_HOME/postgres"
    for name in ca.crt keypeer.crt keypeer.key; do install -m 600 "$PG_TLS/$name" "$KEYPEER_HOME/postgres/$name"; done
    STORE="postgresql://keypeer@localhost:$(pg_port a),localhost:$(pg_port b),localhost:$(pg_port c)/keypeer"
    STORE+="?sslrootcert=postgres/ca.crt&sslcert=postgres/keypeer.crt&sslkey=postgres/keypeer.key"
}
