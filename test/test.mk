# test.mk: targets for people who work on resync; included by the Makefile.
#
# None of them touches the installed PostgreSQL: see test/README.md.  test and
# demo work before PostgreSQL's development files are there (PGXS is empty
# then), since they install them.

ifeq ($(strip $(PGXS)),)
.DEFAULT_GOAL := all
.PHONY: all install installcheck
all install installcheck:
	@echo "pg_config not found: install postgresql-server-dev-15, or set PG_CONFIG" >&2; exit 1
endif

top = $(or $(srcdir),.)

.PHONY: test demo demo-clickhouse demo-bigquery demo-snowflake bench-clickhouse test-long test-valgrind check-layers check-format format

# Everything: installs what is missing (apt), builds, runs all tests.
# TESTS="001_basic 003_resync" runs only these TAP tests; KEEP=1 leaves the
# working directory behind.
test:
	@bash $(top)/test/run.sh

demo:
	@bash $(top)/test/demo.sh

# The same with a ClickHouse destination, and a load measured against COPY | curl.
demo-clickhouse:
	@bash $(top)/test/demo_clickhouse.sh

# The same at BigQuery's emulator.
demo-bigquery:
	@bash $(top)/test/demo_bigquery.sh

# The same at a service that speaks Snowflake's protocol.
demo-snowflake:
	@bash $(top)/test/demo_snowflake.sh

bench-clickhouse:
	@bash $(top)/test/bench_clickhouse.sh

# Fifty seeds of random trouble, each printed as it ends, and every way to die at
# every debug point.  RESYNC_SEEDS="7 60-80" has other seeds.
test-long:
	@RESYNC_LONG=1 RESYNC_SEEDS="$${RESYNC_SEEDS:-1-50}" TESTS="020_chaos 021_crash_points 038_clickhouse_chaos" \
		bash $(top)/test/run.sh 9>&1

# Under valgrind's memcheck; a report that has code of ours on its stack fails.
# TESTS has others; RESYNC_SERVER=prefix takes a server built for it.
test-valgrind:
	@VALGRIND=1 TESTS="$${TESTS:-regress 001_basic 002_types}" bash $(top)/test/run.sh

check-layers:
	@bash $(top)/test/check_layers.sh

check-format:
	@bash $(top)/test/check_format.sh

format:
	@find $(top)/src -name '*.[ch]' -exec clang-format -i --style=file {} +
