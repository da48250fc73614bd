# make demo and make test are all a newcomer needs; both build the environment in .venv first.
VENV := .venv
PYTHON ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
export PYTHON

# What a sourced ROS distribution leaves in the shell would shadow the ROS 2 wheels of .venv.
unexport PYTHONPATH PYTHONHOME LD_LIBRARY_PATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH
unexport RMW_IMPLEMENTATION _ROS_WHEELS_BOOTSTRAP_COMPLETE

# DDS stays on this machine, in a domain of its own, so that runs do not hear each other.
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST
export ROS_DOMAIN_ID := $(shell shuf -i 1-100 -n 1)
# Several processes share the cores here: waiting threads must sleep, not spin.
export OMP_WAIT_POLICY ?= PASSIVE
export MPLBACKEND ?= Agg

.DEFAULT_GOAL := help
.PHONY: help env demo test lint fuzz soak docs bench clean

help:  ## say what can be made
	@echo 'pose_reloc: camera relocalization for ROS 2'
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s%s\n", $$1, $$2}' Makefile
	@echo
	@echo 'make env PYTHON=/path/to/python3.11   chooses the interpreter'
	@echo 'make test PYTEST_ARGS="-k geometry"   passes options to pytest'
	@echo 'make bench BENCH_ARGS="--quick"       passes options to pose_reloc bench'

env: $(VENV)/.built  ## build the environment in .venv: once, 2 to 6 minutes, 7 GB

demo: env  ## render a room, train, replay it through the real node; writes demo/report.html
	@$(VENV)/bin/pose_reloc demo --out demo

test: env  ## run all tests (POSE_RELOC_DATA=FOLDER adds those on real data)
	@$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

lint: env  ## check style, format, advisories (fix: .venv/bin/ruff check --fix . ; ruff format .)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/python environment/audit.py

fuzz: env  ## 10,000 damaged files for every parser: 20 minutes
	@POSE_RELOC_FUZZ_CASES=10000 $(VENV)/bin/python -m pytest test/test_fuzz.py $(PYTEST_ARGS)

soak: env  ## kill training 60 times, run the node for half an hour: one hour
	@$(VENV)/bin/python -m pytest -m slow $(PYTEST_ARGS)
	@POSE_RELOC_KILLS=60 $(VENV)/bin/python -m pytest -k kill_9 test/training/test_faults.py \
		$(PYTEST_ARGS)
	@POSE_RELOC_SOAK_S=1800 $(VENV)/bin/python -m pytest -s test/pose_reloc/ros/test_soak.py \
		test/pose_reloc/ros/test_faults.py test/pose_reloc/ros/test_process.py $(PYTEST_ARGS)

docs: env  ## build the documentation as a web site in site/
	@$(VENV)/bin/mkdocs build --strict --quiet

bench: env  ## measure speed and memory on this machine: 20 to 30 minutes; writes bench/bench.md
	@$(VENV)/bin/pose_reloc bench $(BENCH_ARGS)

clean:  ## remove what demo, test, bench and colcon wrote; .venv stays (remove it: rm -rf .venv)
	rm -rf bench demo site build install log dist *.egg-info .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(VENV)/.built: environment/build.sh environment/constraints.txt environment/tf2_msgs.py setup.py
	@environment/build.sh $(VENV)
	@touch $@
