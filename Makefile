# make demo   shows the main job on a lab of this machine's own
# make test   runs all tests
# make bench  measures, as ratios in one run; ARGS=--quick for a tenth of it, ARGS=--json for machines
.PHONY: demo test bench build setup crds lint

# One feature set for every target: aws-sdk-ec2 takes minutes, and another set of features would compile it again.
CARGO_BUILD = cargo build --workspace --all-targets

setup:
	@tests/lab/setup.sh

build: setup
	@tests/demo/needs-cargo.sh
	@echo "== building (the first time takes some minutes, most of them for the AWS SDK)"
	@$(CARGO_BUILD)

demo: build
	@tests/demo/demo.sh

test:
	@tests/lab/setup.sh --clients
	@$(MAKE) --no-print-directory build
	@tests/lab/setup-aws-cli.sh >/dev/null
	@tests/lab/setup-moto.sh >/dev/null
	@cargo test --workspace

bench: setup
	@cargo bench --bench grants -- $(ARGS)

crds:
	@UPDATE_CRDS=1 cargo test --test api the_files_in_crds

lint:
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets -- -D warnings
